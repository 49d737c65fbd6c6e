#include "parsed_request.h"

#include <algorithm>

#include "utf8.h"

namespace trimtab {
namespace {

using wire::Bytes;
using wire::Field;
using wire::Reader;
using wire::is_utf8;
using wire::tag;

bool read_text(Reader& reader, const Field& field, std::string_view& text) {
  if (!is_utf8(field.bytes)) return reader.fail("a string that is not UTF-8", field.bytes.data);
  text = field.bytes.text();
  return true;
}

void read_parameter(Reader reader, Parameter& parameter) {
  using Kind = Parameter::Kind;
  if (parameter.kind == Kind::absent) parameter.kind = Kind::none;
  for (Field field; reader.next(field);) {
    switch (field.tag) {
      case tag(1, wire::varint): parameter = {Kind::boolean, field.number != 0, {}}; break;
      case tag(2, wire::varint): parameter = {Kind::int64, field.number, {}}; break;
      case tag(3, wire::delimited):
        parameter = {Kind::string, 0, {}};
        if (!read_text(reader, field, parameter.text)) return;
        break;
      case tag(4, wire::fixed64): parameter = {Kind::float64, field.number, {}}; break;
      case tag(5, wire::varint): parameter = {Kind::uint64, field.number, {}}; break;
      default: break;
    }
  }
}

// One entry of a map of parameters. False: it is not one. As below python-protobuf, an entry with fields
// that are unknown to it is put by whole.
bool read_entry(Reader reader, std::string_view& key, Parameter& value) {
  value.kind = Parameter::Kind::none;
  bool known = true;
  for (Field field; reader.next(field);) {
    switch (field.tag) {
      case tag(1, wire::delimited):
        if (!read_text(reader, field, key)) return false;
        break;
      case tag(2, wire::delimited): read_parameter(reader.inside(field.bytes), value); break;
      default: known = false;
    }
  }
  return known && reader.sound();
}

void read_request_parameter(Reader reader, Parameters& parameters) {
  std::string_view key;
  Parameter value;
  if (!read_entry(reader, key, value)) return;
  if (Parameter* known = parameters.find(key)) {
    *known = value;
  } else if (key.substr(0, 7) == "triton_" && (!parameters.reserved || key < *parameters.reserved)) {
    parameters.reserved = key;
  }
}

// `shape` gets the first `kept` dimensions.
void read_input(Reader reader, ParsedInput& input, std::vector<int64_t>& shape, size_t kept) {
  const auto add_dimension = [&](uint64_t size) {
    ++input.dimensions;
    if (shape.size() < kept) shape.push_back(static_cast<int64_t>(size));
  };
  for (Field field; reader.next(field);) {
    switch (field.tag) {
      case tag(1, wire::delimited):
        if (!read_text(reader, field, input.name)) return;
        break;
      case tag(2, wire::delimited):
        if (!read_text(reader, field, input.datatype)) return;
        break;
      case tag(3, wire::varint): add_dimension(field.number); break;
      case tag(3, wire::delimited): {
        shape.reserve(std::min(kept, shape.size() + field.bytes.size));
        Reader packed = reader.inside(field.bytes);
        for (uint64_t size; packed.next_packed(size);) add_dimension(size);
        break;
      }
      case tag(4, wire::delimited): {
        std::string_view key;
        Parameter value;
        if (read_entry(reader.inside(field.bytes), key, value)) {
          input.in_shared_memory |= key == "shared_memory_region";
        }
        break;
      }
      case tag(5, wire::delimited):
        input.has_contents = true;
        count_contents(reader.inside(field.bytes), input.contents);
        break;
      default: break;
    }
  }
}

void read_output(Reader reader, RequestedOutput& output) {
  for (Field field; reader.next(field);) {
    switch (field.tag) {
      case tag(1, wire::delimited):
        if (!read_text(reader, field, output.name)) return;
        break;
      case tag(2, wire::delimited): {
        std::string_view key;
        Parameter value;
        if (read_entry(reader.inside(field.bytes), key, value)) {
          output.in_shared_memory |= key == "shared_memory_region";
          output.classification |= key == "classification";
        }
        break;
      }
      default: break;
    }
  }
}

}  // namespace

void parse_request(Bytes message, const Schema& schema, ParsedRequest& parsed, InferRequest& out,
                   wire::Fault& fault) {
  const size_t input_limit = schema.inputs.size();
  size_t kept = shown_dimensions;  // and one more than any input has
  for (const InputSpec& spec : schema.inputs) kept = std::max(kept, spec.shape.size() + 1);
  ParsedInput unread_input;
  RequestedOutput unread_output;
  std::vector<int64_t> unread_shape;
  std::string_view addressee;
  Reader reader(message, fault);
  for (Field field; reader.next(field);) {
    switch (field.tag) {
      case tag(1, wire::delimited):
      case tag(2, wire::delimited):
        if (!read_text(reader, field, addressee)) return;
        break;
      case tag(3, wire::delimited):
        if (!read_text(reader, field, parsed.id)) return;
        break;
      case tag(4, wire::delimited):
        read_request_parameter(reader.inside(field.bytes), parsed.parameters);
        break;
      case tag(5, wire::delimited): {
        const size_t index = parsed.input_count++;
        ParsedInput& input = index <= input_limit ? parsed.inputs.add() : unread_input;
        input.message = field.bytes;
        const bool used = index < input_limit;
        read_input(reader.inside(field.bytes), input, used ? out.inputs[index].shape : unread_shape,
                   used ? kept : 0);
        break;
      }
      case tag(6, wire::delimited):
        read_output(reader.inside(field.bytes), parsed.outputs.size() <= schema.outputs.size()
                                                    ? parsed.outputs.add()
                                                    : unread_output);
        break;
      case tag(7, wire::delimited):
        if (parsed.raw_count++ < input_limit) parsed.raws.add() = field.bytes;
        break;
      default: break;
    }
  }
}

void parse_addressee(Bytes message, std::string_view& model, std::string_view& version,
                     std::string_view& id, wire::Fault& fault) {
  Reader reader(message, fault);
  for (Field field; reader.next(field);) {
    if (field.tag == tag(1, wire::delimited)) {
      if (!read_text(reader, field, model)) return;
    } else if (field.tag == tag(2, wire::delimited)) {
      if (!read_text(reader, field, version)) return;
    } else if (field.tag == tag(3, wire::delimited)) {
      id = field.bytes.text();
    }
  }
}

}  // namespace trimtab
