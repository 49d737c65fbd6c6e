// Outputs to ModelInferResponse bytes, each field in ascending order, as protobuf itself writes them.
#include <algorithm>

#include "infer_message.h"
#include "protobuf_wire.h"
#include "typed_contents.h"

namespace trimtab {
namespace {

using wire::Bytes;
using wire::Writer;
using wire::field_size;

// Typed or raw, for all outputs alike: a client finds raw contents by their place.
bool is_typed(const Schema& schema, const InferRequest& request, const uint32_t* indexes, size_t count) {
  return request.mirror && std::all_of(indexes, indexes + count, [&](uint32_t index) {
    return contents_field(schema.outputs[index].datatype) != 0;
  });
}

size_t shape_size(const OutputData& output) {
  size_t size = 0;
  for (size_t index = 0; index < output.rank; ++index) {
    size += wire::varint_size(static_cast<uint64_t>(output.shape[index]));
  }
  return size;
}

// Bytes of an InferOutputTensor without its contents.
size_t description_size(const OutputSpec& spec, const OutputData& output) {
  size_t size = field_size(datatype_name(spec.datatype).size());
  if (!spec.name.empty()) size += field_size(spec.name.size());
  if (output.rank > 0) size += field_size(shape_size(output));
  return size;
}

void write_description(Writer& writer, const OutputSpec& spec, const OutputData& output) {
  if (!spec.name.empty()) writer.field(1, spec.name);
  writer.field(2, datatype_name(spec.datatype));
  if (output.rank == 0) return;
  writer.lead(3, shape_size(output));
  for (size_t index = 0; index < output.rank; ++index) {
    writer.number(static_cast<uint64_t>(output.shape[index]));
  }
}

}  // namespace

std::string reply_prefix(const Schema& schema) {
  const std::string version = std::to_string(schema.version);
  const size_t model_size = schema.model.empty() ? 0 : field_size(schema.model.size());
  std::string prefix(model_size + field_size(version.size()), '\0');
  Writer writer(reinterpret_cast<uint8_t*>(prefix.data()));
  if (!schema.model.empty()) writer.field(1, schema.model);
  writer.field(2, version);
  return prefix;
}

size_t reply_size(const Schema& schema, const std::string& prefix, const InferRequest& request,
                  const OutputData* outputs, const uint32_t* indexes, size_t count) {
  const bool typed = is_typed(schema, request, indexes, count);
  size_t size = prefix.size();
  if (!request.id.empty()) size += field_size(request.id.size());
  for (size_t index = 0; index < count; ++index) {
    const OutputData& output = outputs[index];
    const OutputSpec& spec = schema.outputs[indexes[index]];
    size_t described = description_size(spec, output);
    if (typed) {
      described += field_size(contents_size(spec.datatype, {output.data, output.size}));
    } else {
      size += field_size(output.size);
    }
    size += field_size(described);
  }
  return size;
}

void write_reply(uint8_t* to, const Schema& schema, const std::string& prefix, const InferRequest& request,
                 const OutputData* outputs, const uint32_t* indexes, size_t count) {
  const bool typed = is_typed(schema, request, indexes, count);
  Writer writer(to);
  writer.bytes(prefix.data(), prefix.size());
  if (!request.id.empty()) writer.field(3, request.id);
  for (size_t index = 0; index < count; ++index) {
    const OutputData& output = outputs[index];
    const OutputSpec& spec = schema.outputs[indexes[index]];
    const size_t described = description_size(spec, output);
    if (!typed) {
      writer.lead(5, described);
      write_description(writer, spec, output);
      continue;
    }
    const Bytes raw{output.data, output.size};
    const size_t contents = contents_size(spec.datatype, raw);
    writer.lead(5, described + field_size(contents));
    write_description(writer, spec, output);
    writer.lead(5, contents);
    write_contents(writer, spec.datatype, raw);
  }
  if (typed) return;
  for (size_t index = 0; index < count; ++index) {
    writer.lead(6, outputs[index].size);
    writer.bytes(outputs[index].data, outputs[index].size);
  }
}

}  // namespace trimtab
