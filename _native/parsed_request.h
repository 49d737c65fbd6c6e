// What a ModelInferRequest says, before it is held against a schema.
//
// Every byte is met, since a message that is malformed anywhere is refused for that before anything
// else. Of things that a message may repeat no more are remembered than the schema has, and one: that
// is enough to tell why there are too many.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "infer_request.h"
#include "protobuf_wire.h"
#include "typed_contents.h"

namespace trimtab {

constexpr size_t shown_dimensions = 16;  // of a shape that is wrong

// The first few without memory of their own.
template <class T, size_t few>
class Few {
 public:
  size_t size() const { return size_; }
  T& operator[](size_t index) { return index < few ? few_[index] : more_[index - few]; }
  const T& operator[](size_t index) const { return index < few ? few_[index] : more_[index - few]; }
  T& add() {
    if (size_ >= few) more_.emplace_back();
    return (*this)[size_++];
  }

 private:
  T few_[few];
  std::vector<T> more_;
  size_t size_ = 0;
};

struct Parameter {
  enum class Kind { absent, none, boolean, int64, string, float64, uint64 };

  Kind kind = Kind::absent;
  uint64_t number = 0;
  std::string_view text;
};

// Those of the request that mean something here.
struct Parameters {
  Parameter event_time, timeout, priority, empty_final_response;
  Parameter sequence_id, sequence_start, sequence_end;
  // Of those that are Triton's to define and that are not known, the first in the alphabet.
  std::optional<std::string_view> reserved;

  Parameter* find(std::string_view key) {
    if (key == "event_time") return &event_time;
    if (key == "timeout") return &timeout;
    if (key == "priority") return &priority;
    if (key == "triton_enable_empty_final_response") return &empty_final_response;
    if (key == "sequence_id") return &sequence_id;
    if (key == "sequence_start") return &sequence_start;
    if (key == "sequence_end") return &sequence_end;
    return nullptr;
  }
};

struct ParsedInput {
  std::string_view name;
  std::string_view datatype;
  wire::Bytes message;
  size_t dimensions = 0;
  bool in_shared_memory = false;
  bool has_contents = false;
  ContentsCount contents;
  uint32_t spec = 0;  // the schema's index of it; for whoever looks that up
};

struct RequestedOutput {
  std::string_view name;
  bool in_shared_memory = false;
  bool classification = false;
};

struct ParsedRequest {
  std::string_view id;
  Parameters parameters;
  Few<ParsedInput, 2> inputs;
  Few<RequestedOutput, 4> outputs;
  Few<wire::Bytes, 4> raws;
  size_t input_count = 0;  // in the message; `inputs` may have fewer
  size_t raw_count = 0;
};

// Fills `parsed`, which is new, and the shapes of `out`, which has as many inputs as the schema: those are
// in the message's order then, and cut to what the schema or an error needs. Leaves the fault of a message
// that is malformed.
void parse_request(wire::Bytes message, const Schema& schema, ParsedRequest& parsed, InferRequest& out,
                   wire::Fault& fault);

// The fields 1 to 3 of the message; meets the others on its top level only. The id is not checked.
void parse_addressee(wire::Bytes message, std::string_view& model, std::string_view& version,
                     std::string_view& id, wire::Fault& fault);

}  // namespace trimtab
