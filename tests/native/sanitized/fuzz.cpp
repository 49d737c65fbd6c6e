// Any bytes as a ModelInferRequest: a clean status each time, nothing read outside, nothing leaked.
//
// A libFuzzer target (`make fuzz`). The first byte picks the schema; the rest goes through the data plane
// as a request would, is computed by an echo where it is accepted, and its reply must be well-formed.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "plane.h"

using namespace trimtab;

namespace {

void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

class FuzzCall final : public Call {
 public:
  FuzzCall(const uint8_t* data, size_t size) : bytes_(data, data + size) {
    request = bytes_.data();
    request_size = size;
  }
  uint8_t* reserve(size_t size) noexcept override {
    reply.assign(size, 0xAA);
    return reply.data();
  }
  void drop_request() noexcept override { std::vector<uint8_t>().swap(bytes_); }
  void finish(const Status& its_status) noexcept override {
    require(!finished, "finished twice");
    finished = true;
    status = its_status;
  }

  std::vector<uint8_t> reply;
  Status status;
  bool finished = false;

 private:
  std::vector<uint8_t> bytes_;
};

// The top level of a reply is tags and lengths that add up to its size.
void check_reply(const std::vector<uint8_t>& reply) {
  size_t at = 0;
  while (at < reply.size()) {
    require((reply[at] & 7) == 2, "a field of a reply is not length-delimited");
    ++at;
    uint64_t length = 0;
    for (int shift = 0;; shift += 7) {
      require(at < reply.size() && shift < 64, "a length of a reply is torn");
      length |= static_cast<uint64_t>(reply[at] & 127) << shift;
      if (!(reply[at++] & 128)) break;
    }
    require(length <= reply.size() - at, "a field of a reply is longer than the reply");
    at += length;
  }
}

std::shared_ptr<ServedVersion> version_of(int kind) {
  Schema schema;
  schema.model = "m";
  schema.version = 1;
  schema.batchable = kind != 2;
  schema.max_request_rows = 1000;
  schema.mirror_contents = kind == 3;
  const Datatype types[] = {Datatype::FP32,  Datatype::BYTES, Datatype::INT64,
                            Datatype::UINT8, Datatype::BOOL,  Datatype::FP16};
  if (kind == 0) {
    schema.inputs.push_back({"x", Datatype::FP32, {-1, 2}});
  } else if (kind == 1) {
    schema.inputs.push_back({"x", Datatype::BYTES, {-1, -1}});
  } else {
    for (size_t index = 0; index < std::size(types); ++index) {
      schema.inputs.push_back({std::string(1, static_cast<char>('a' + index)), types[index],
                               index % 2 ? std::vector<int64_t>{-1} : std::vector<int64_t>{-1, -1}});
    }
  }
  for (const InputSpec& input : schema.inputs) {
    schema.outputs.push_back({"y" + input.name, input.datatype});
  }
  VersionLimits limits;
  limits.max_batch_rows = limits.max_queue_rows = 1000;
  return std::make_shared<ServedVersion>(schema, limits);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static std::shared_ptr<ServedVersion> versions[4];
  static DataPlane* planes[4];
  if (planes[0] == nullptr) {
    for (int kind = 0; kind < 4; ++kind) {
      versions[kind] = version_of(kind);
      planes[kind] = new DataPlane("fuzz");
      Route route;
      route.answers = versions[kind];
      route.versions[1] = versions[kind];
      planes[kind]->set_route("m", std::move(route));
    }
  }
  if (size == 0) return 0;
  const int kind = data[0] & 3;
  auto* call = new FuzzCall(data + 1, size - 1);
  planes[kind]->submit(call);
  if (!call->finished) {
    call->expires = Clock::time_point::max();  // else a take could wait for ever
    bool closed = false;
    std::unique_ptr<Batch> batch = Batch::take(versions[kind], true, {}, closed);
    std::vector<Computed> outputs;
    std::vector<uint32_t> indexes;
    for (uint32_t index : batch->wanted()) {
      const Batch::Gathered& input = batch->inputs()[index];
      outputs.push_back({input.data.get(), input.size, input.shape});
      indexes.push_back(index);
    }
    const std::string problem = batch->reply(outputs, indexes);
    require(problem.empty(), "an echo could not be divided");
    if (!batch->keep(outputs) || versions[kind]->kept.rows > 100) versions[kind]->kept = Kept();
  }
  require(call->finished, "was not finished");
  if (call->status.ok()) {
    check_reply(call->reply);
  } else {
    require(!call->status.text.empty() && call->status.text.size() < 2000, "a text is too long");
  }
  require(planes[kind]->calls_in_flight() == 0, "is still counted");
  call->release();
  return 0;
}
