// ModelInferRequest bytes to an InferRequest: what parsed_request.h finds in the message is held against
// the schema here, with the protocol's checks in a fixed order. Error texts are Triton's where it has one.
#include <algorithm>
#include <type_traits>
#include <unordered_map>

#include "infer_message.h"
#include "parsed_request.h"

namespace trimtab {
namespace {

using wire::Bytes;

constexpr size_t max_id_length = 256;  // characters
// As many as the longest message that gRPC has could carry at one byte each. An empty tensor carries
// nothing, and its other dimensions are still multiplied with each other.
constexpr int64_t max_elements = INT32_MAX;
constexpr int64_t max_event_time_ms = 253'402'300'799'999;  // the last millisecond of the year 9999
constexpr size_t shown_name = 200;   // bytes
constexpr size_t shown_list = 2000;  // bytes, of names; a trailer of more than 8 KiB does not arrive

// --- texts

template <class Part>
void append(std::string& text, const Part& part) {
  if constexpr (std::is_arithmetic_v<Part>) {
    text += std::to_string(part);
  } else {
    text += part;
  }
}

template <class... Parts>
[[gnu::noinline, gnu::cold]] Status refused(Code code, const Parts&... parts) {
  Status status{code, {}};
  (append(status.text, parts), ...);
  return status;
}

template <class... Parts>
Status invalid(const Parts&... parts) {
  return refused(Code::invalid_argument, parts...);
}

// A client's string for a message. It is UTF-8 and stays that.
std::string shown(std::string_view text) {
  if (text.size() <= shown_name) return std::string(text);
  size_t end = shown_name;
  while (end > 0 && (text[end] & 0xc0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "…";
}

// A shape as Triton's messages write it: [-1,30].
std::string shape_text(const std::vector<int64_t>& shape, size_t dimensions) {
  std::string text = "[";
  for (size_t index = 0; index < std::min(dimensions, shape.size()); ++index) {
    if (index > 0) text += ',';
    text += std::to_string(shape[index]);
  }
  return text + (dimensions > shape.size() ? ",…]" : "]");
}

std::string shape_text(const std::vector<int64_t>& shape) { return shape_text(shape, shape.size()); }

size_t characters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xc0) != 0x80; }));
}

// --- parameters

using Kind = Parameter::Kind;

Status wrong_kind(const char* name, const char* expected) {
  return invalid("invalid value type for '", name, "' parameter, expected ", expected, ".");
}

Status not_supported(const char* parameter, std::string_view where) {
  return refused(Code::unimplemented, "parameter '", parameter, "' of ", where, " is not supported");
}

bool is_of(const Parameter& parameter, Kind kind) {
  return parameter.kind == kind || parameter.kind == Kind::absent;
}

Status check_parameters(const Parameters& given, InferRequest& out) {
  if (!is_of(given.event_time, Kind::int64)) return wrong_kind("event_time", "int64_param");
  if (!is_of(given.timeout, Kind::int64)) return wrong_kind("timeout", "int64_param");
  const int64_t event_time = static_cast<int64_t>(given.event_time.number);
  if (event_time < 0 || event_time > max_event_time_ms) {
    return invalid("event_time = ", event_time, ": must be milliseconds since 1970, from 0 to ",
                   max_event_time_ms);
  }
  const int64_t timeout = static_cast<int64_t>(given.timeout.number);
  if (timeout < 0) return invalid("timeout = ", timeout, ": must be microseconds, at least 0");
  if (!is_of(given.priority, Kind::int64) && !is_of(given.priority, Kind::uint64)) {
    return wrong_kind("priority", "int64_param or uint64_param");
  }
  if (!is_of(given.empty_final_response, Kind::boolean)) {
    return wrong_kind("triton_enable_empty_final_response", "bool_param");
  }
  if (!is_of(given.sequence_id, Kind::int64) && !is_of(given.sequence_id, Kind::string)) {
    return wrong_kind("sequence_id", "int64_param or string_param");
  }
  if (!is_of(given.sequence_start, Kind::boolean)) return wrong_kind("sequence_start", "bool_param");
  if (!is_of(given.sequence_end, Kind::boolean)) return wrong_kind("sequence_end", "bool_param");
  // A request that belongs to no sequence may say so.
  if (given.sequence_id.number != 0 || !given.sequence_id.text.empty()) {
    return not_supported("sequence_id", "the request");
  }
  if (given.sequence_start.number != 0) return not_supported("sequence_start", "the request");
  if (given.sequence_end.number != 0) return not_supported("sequence_end", "the request");
  if (given.reserved) {
    return invalid("parameter '", shown(*given.reserved),
                   "' is not known: of keys that start with 'triton_' only "
                   "'triton_enable_empty_final_response' is");
  }
  if (given.event_time.kind != Kind::absent) out.event_time_ms = event_time;
  out.timeout_us = timeout;
  return {};
}

// --- names

// The schema's inputs or outputs, and which of them a request has named.
template <class Spec>
class Names {
 public:
  explicit Names(const std::vector<Spec>& specs) : specs_(specs) {
    if (specs.size() > few) many_taken_.resize(specs.size());
  }

  // Where the name is; `likely` is looked at first. Not found: the number of names.
  size_t find(std::string_view name, size_t likely) {
    if (likely < specs_.size() && specs_[likely].name == name) return likely;
    if (specs_.size() <= few) {
      size_t index = 0;
      while (index < specs_.size() && specs_[index].name != name) ++index;
      return index;
    }
    if (places_.empty()) {
      places_.reserve(specs_.size());
      for (size_t index = 0; index < specs_.size(); ++index) places_.emplace(specs_[index].name, index);
    }
    const auto found = places_.find(name);
    return found == places_.end() ? specs_.size() : found->second;
  }

  // False: it was taken before.
  bool take(size_t index) {
    if (taken(index)) return false;
    if (specs_.size() > few) {
      many_taken_[index] = true;
    } else {
      few_taken_ |= uint32_t{1} << index;
    }
    return true;
  }

  bool taken(size_t index) const {
    return specs_.size() > few ? bool{many_taken_[index]} : (few_taken_ >> index & 1) != 0;
  }

 private:
  static constexpr size_t few = 16;

  const std::vector<Spec>& specs_;
  uint32_t few_taken_ = 0;
  std::vector<bool> many_taken_;
  std::unordered_map<std::string_view, size_t> places_;  // filled when many are looked for
};

Status check_outputs(const ParsedRequest& parsed, const Schema& schema, InferRequest& out) {
  Names names(schema.outputs);
  out.outputs.reserve(std::min(parsed.outputs.size(), schema.outputs.size()));
  for (size_t index = 0; index < parsed.outputs.size(); ++index) {
    const RequestedOutput& each = parsed.outputs[index];
    const size_t place = names.find(each.name, index);
    if (place == schema.outputs.size()) {
      return invalid("unexpected inference output '", shown(each.name), "' for model '", schema.model, "'");
    }
    const std::string& name = schema.outputs[place].name;
    if (!names.take(place)) {
      return invalid("output '", name, "' for model '", schema.model, "' is requested more than once");
    }
    if (each.in_shared_memory) return not_supported("shared_memory_region", "output '" + name + "'");
    if (each.classification) return not_supported("classification", "output '" + name + "'");
    out.outputs.push_back(static_cast<uint32_t>(place));
  }
  return {};
}

std::string quoted(const std::vector<std::string_view>& names) {
  std::string text = "[";
  for (const std::string_view name : names) {
    if (text.size() > 1) text += ',';
    if (text.size() + name.size() > shown_list) return text + "…]";
    ((text += '\'') += name) += '\'';
  }
  return text + "]";
}

// Every input of the model, once, and nothing else, in any order.
Status check_names(ParsedRequest& parsed, const Schema& schema) {
  Names names(schema.inputs);
  for (size_t index = 0; index < parsed.inputs.size(); ++index) {
    ParsedInput& each = parsed.inputs[index];
    const size_t place = names.find(each.name, index);
    if (place == schema.inputs.size()) {
      return invalid("unexpected inference input '", shown(each.name), "' for model '", schema.model, "'");
    }
    if (!names.take(place)) {
      return invalid("input '", schema.inputs[place].name, "' for model '", schema.model,
                     "' is given more than once");
    }
    each.spec = static_cast<uint32_t>(place);
  }
  if (parsed.inputs.size() == schema.inputs.size()) return {};
  std::vector<std::string_view> given, missing;
  for (size_t index = 0; index < parsed.inputs.size(); ++index) given.push_back(parsed.inputs[index].name);
  for (size_t index = 0; index < schema.inputs.size(); ++index) {
    if (!names.taken(index)) missing.push_back(schema.inputs[index].name);
  }
  return invalid("expected ", schema.inputs.size(), " inputs but got ", given.size(), " inputs for model '",
                 schema.model, "'. Got input(s) ", quoted(given), ", but missing required input(s) ",
                 quoted(missing), ". Please provide all required input(s).");
}

// --- tensors

bool fits(const std::vector<int64_t>& shape, size_t dimensions, const std::vector<int64_t>& wanted) {
  if (dimensions != wanted.size()) return false;
  for (size_t index = 0; index < dimensions; ++index) {
    if (shape[index] < 0 || (shape[index] != wanted[index] && wanted[index] >= 0)) return false;
  }
  return true;
}

// A client's shape for a message: it may have any number of dimensions.
std::string given_shape(std::vector<int64_t> shape, size_t dimensions) {
  if (dimensions <= shown_dimensions) return shape_text(shape);
  shape.resize(shown_dimensions);
  return shape_text(shape, dimensions) + " of " + std::to_string(dimensions) + " dimensions";
}

// `elements` becomes those of the shape.
Status check_shape(const ParsedInput& given, const InputSpec& spec, const std::vector<int64_t>& shape,
                   const std::string& model, int64_t& elements) {
  if (given.datatype != datatype_name(spec.datatype)) {
    return invalid("inference input '", spec.name, "' data-type is '", shown(given.datatype),
                   "', but model '", model, "' expects '", datatype_name(spec.datatype), "'");
  }
  if (!fits(shape, given.dimensions, spec.shape)) {
    return invalid("unexpected shape for input '", spec.name, "' for model '", model, "'. Expected ",
                   shape_text(spec.shape), ", got ", given_shape(shape, given.dimensions));
  }
  int64_t product = 1;
  bool empty = false;
  for (const int64_t size : shape) {
    empty |= size == 0;
    if (size > max_elements / product) {
      return invalid("shape ", given_shape(shape, given.dimensions), " of input '", spec.name,
                     "' for model '", model, "' exceeds the limit of ", max_elements,
                     " elements, dimensions of size 0 aside");
    }
    if (size > 0) product *= size;
  }
  if (given.in_shared_memory) return not_supported("shared_memory_region", "input '" + spec.name + "'");
  elements = empty ? 0 : product;
  return {};
}

Status no_data(const std::string& name, const std::string& model) {
  return invalid("unable to find data for input tensor '", name, "' for model '", model, "' in request.");
}

Status wrong_count(uint64_t expected, uint64_t got, const std::string& name, const std::string& model) {
  return invalid("expected ", expected, " string elements for inference input '", name, "' for model '",
                 model, "', got ", got);
}

Status wrong_size(uint64_t expected, uint64_t got, const std::string& name, const std::string& model) {
  return invalid("input byte size mismatch for input '", name, "' for model '", model, "'. Expected ",
                 expected, ", got ", got);
}

Status check_strings(Bytes raw, int64_t elements, const InputSpec& spec, const Schema& schema) {
  const std::string& model = schema.model;
  size_t at = 0;
  int64_t count = 0;
  for (; at < raw.size; ++count) {
    const size_t left = raw.size - at;
    if (left < length_size) {
      return invalid("input '", spec.name, "' for model '", model, "': BYTES data is torn: element ", count,
                     " has ", left, " of the ", length_size, " bytes of its length");
    }
    uint32_t length;
    std::memcpy(&length, raw.data + at, length_size);
    if (length > left - length_size) {
      return invalid("input '", spec.name, "' for model '", model, "': BYTES data is torn: element ", count,
                     " has ", left - length_size, " of its ", length, " bytes");
    }
    if (length > schema.max_string_bytes) {
      return invalid("input '", spec.name, "' for model '", model, "': BYTES element ", count, " has ", length,
                     " bytes, the limit is ", schema.max_string_bytes, " (max_string_bytes)");
    }
    at += length_size + length;
  }
  if (count != elements) return wrong_count(elements, count, spec.name, model);
  return {};
}

void take_converted(InputData& tensor) {
  tensor.data = tensor.converted.data();
  tensor.size = tensor.converted.size();
}

Status from_raw(Bytes raw, int64_t elements, const InputSpec& spec, const Schema& schema,
                InputData& tensor) {
  const std::string& model = schema.model;
  tensor.data = raw.data;
  tensor.size = raw.size;
  if (spec.datatype == Datatype::BYTES) return check_strings(raw, elements, spec, schema);
  const uint64_t expected = static_cast<uint64_t>(elements) * element_size(spec.datatype);
  if (raw.size != expected) return wrong_size(expected, raw.size, spec.name, model);
  if (spec.datatype == Datatype::BOOL) {
    // Any other value than 0 and 1 in a bool is undefined behaviour in C++.
    if (std::any_of(raw.data, raw.data + raw.size, [](uint8_t value) { return value > 1; })) {
      tensor.converted.assign(raw.data, raw.data + raw.size);
      for (uint8_t& value : tensor.converted) value = value != 0;
      take_converted(tensor);
    }
  }
  return {};
}

Status from_contents(const ParsedInput& given, int64_t elements, const InputSpec& spec,
                     const Schema& schema, InputData& tensor) {
  const std::string& model = schema.model;
  const Datatype datatype = spec.datatype;
  const uint32_t number = contents_field(datatype);
  for (uint32_t other = 1; other < contents_fields; ++other) {
    if (other == number || given.contents.values[other] == 0) continue;
    return invalid("input '", spec.name, "' for model '", model, "' is ", datatype_name(datatype),
                   ", which is carried by ", number ? contents_field_name(number) : "raw_input_contents only",
                   ", not by ", contents_field_name(other));
  }
  if (number == 0) return no_data(spec.name, model);
  const uint64_t expected = static_cast<uint64_t>(elements), count = given.contents.values[number];
  if (datatype == Datatype::BYTES) {
    if (count != expected) return wrong_count(expected, count, spec.name, model);
    tensor.converted.resize(count * length_size + given.contents.strings_size);
  } else {
    const size_t size = element_size(datatype);
    if (count != expected) return wrong_size(expected * size, count * size, spec.name, model);
    tensor.converted.resize(count * size);
  }
  if (const auto beyond = contents_to_raw(given.message, datatype, tensor.converted.data())) {
    return invalid("input '", spec.name, "' for model '", model, "' has a value beyond ",
                   datatype_name(datatype), ": ", *beyond);
  }
  take_converted(tensor);
  if (datatype == Datatype::BYTES) return check_strings({tensor.data, tensor.size}, elements, spec, schema);
  return {};
}

// Fills `out.inputs`, in the message's order.
Status check_tensors(const ParsedRequest& parsed, const Schema& schema, InferRequest& out) {
  const std::string& model = schema.model;
  if (parsed.raw_count > parsed.input_count) {
    return invalid("got ", parsed.raw_count, " raw_input_contents for ", parsed.input_count,
                   " inputs of model '", model, "'");
  }
  const bool raw = parsed.raw_count > 0;
  for (size_t index = 0; index < parsed.input_count; ++index) {
    const ParsedInput& given = parsed.inputs[index];
    const InputSpec& spec = schema.inputs[given.spec];
    InputData& tensor = out.inputs[index];
    if (raw && given.has_contents) {
      return invalid("contents field must not be specified when using raw_input_contents for '", spec.name,
                     "' for model '", model, "'");
    }
    int64_t elements = 0;
    if (Status status = check_shape(given, spec, tensor.shape, model, elements); !status.ok()) return status;
    Status status;
    if (raw) {
      if (index >= parsed.raw_count) return no_data(spec.name, model);
      status = from_raw(parsed.raws[index], elements, spec, schema, tensor);
    } else {
      if (!given.has_contents && elements > 0) return no_data(spec.name, model);
      status = from_contents(given, elements, spec, schema, tensor);
    }
    if (!status.ok()) return status;
  }
  out.mirror = schema.mirror_contents && !raw;
  return {};
}

// How many predictions the request asks for; 1 where the model has no rows.
Status count_rows(const ParsedRequest& parsed, const Schema& schema, InferRequest& out) {
  const auto rows_of = [&](size_t index) {
    const std::vector<int64_t>& shape = out.inputs[index].shape;
    return shape.empty() ? 1 : shape[0];
  };
  const auto name_of = [&](size_t index) { return schema.inputs[parsed.inputs[index].spec].name; };
  int64_t rows = parsed.input_count > 0 ? rows_of(0) : 1;
  for (size_t index = 0; index < parsed.input_count; ++index) {
    const int64_t these = rows_of(index);
    if (these == 0) {
      return invalid("input '", name_of(index), "' for model '", schema.model, "' has zero rows: ",
                     shape_text(out.inputs[index].shape));
    }
    if (these != rows) {
      if (schema.batchable) {
        return invalid("input '", name_of(index), "' for model '", schema.model, "' has ", these,
                       " rows, but '", name_of(0), "' has ", rows);
      }
      rows = 1;
      break;
    }
  }
  if (rows > schema.max_request_rows) {
    return invalid("request of ", rows, " rows for model '", schema.model, "' exceeds the limit of ",
                   schema.max_request_rows, " rows (max_request_rows)");
  }
  out.rows = rows;
  return {};
}

void put_in_order(const ParsedRequest& parsed, InferRequest& out) {
  size_t index = 0;
  while (index < parsed.inputs.size() && parsed.inputs[index].spec == index) ++index;
  if (index == parsed.inputs.size()) return;
  std::vector<InputData> ordered(out.inputs.size());
  for (index = 0; index < ordered.size(); ++index) {
    ordered[parsed.inputs[index].spec] = std::move(out.inputs[index]);
  }
  out.inputs = std::move(ordered);
}

[[gnu::noinline, gnu::cold]] Status malformed(const wire::Fault& fault, const uint8_t* message) {
  return invalid("the request is not a inference.ModelInferRequest: ", fault.what, ", at byte ",
                 fault.at - message);
}

constexpr std::string_view datatype_names[] = {
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16",
    "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES",
};

}  // namespace

std::string_view datatype_name(Datatype datatype) { return datatype_names[static_cast<size_t>(datatype)]; }

bool datatype_of(std::string_view name, Datatype& out) {
  const auto found = std::find(std::begin(datatype_names), std::end(datatype_names), name);
  if (found == std::end(datatype_names)) return false;
  out = static_cast<Datatype>(found - std::begin(datatype_names));
  return true;
}

Status read_addressee(const uint8_t* message, size_t size, Addressee& out) {
  out = {};
  wire::Fault fault;
  parse_addressee({message, size}, out.model, out.version, out.id, fault);
  return fault.what ? malformed(fault, message) : Status{};
}

Status decode_request(const uint8_t* message, size_t size, const Schema& schema, InferRequest& out) {
  out = {};
  out.inputs.resize(schema.inputs.size());
  ParsedRequest parsed;
  wire::Fault fault;
  parse_request({message, size}, schema, parsed, out, fault);
  if (fault.what) return malformed(fault, message);
  if (parsed.id.size() > max_id_length) {
    if (const size_t length = characters(parsed.id); length > max_id_length) {
      return invalid("the id of ", length, " characters exceeds the limit of ", max_id_length);
    }
  }
  out.id = parsed.id;
  Status status = check_parameters(parsed.parameters, out);
  if (status.ok()) status = check_outputs(parsed, schema, out);
  if (status.ok()) status = check_names(parsed, schema);
  if (status.ok()) status = check_tensors(parsed, schema, out);
  if (status.ok()) status = count_rows(parsed, schema, out);
  if (status.ok()) put_in_order(parsed, out);
  return status;
}

}  // namespace trimtab
