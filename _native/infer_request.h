// A ModelInferRequest that was found computable, and what it was checked against.
//
// Plain values, no behaviour: infer_message.h makes them from bytes, the queue and the batches read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace trimtab {

enum class Datatype : uint8_t {
  BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64, BYTES,
};

// Bytes of one element; 0 for BYTES.
inline size_t element_size(Datatype datatype) {
  switch (datatype) {
    case Datatype::BOOL: case Datatype::UINT8: case Datatype::INT8: return 1;
    case Datatype::UINT16: case Datatype::INT16: case Datatype::FP16: case Datatype::BF16: return 2;
    case Datatype::UINT32: case Datatype::INT32: case Datatype::FP32: return 4;
    case Datatype::UINT64: case Datatype::INT64: case Datatype::FP64: return 8;
    case Datatype::BYTES: return 0;
  }
  return 0;
}

struct InputSpec {
  std::string name;
  Datatype datatype;
  std::vector<int64_t> shape;  // -1: any size
};

struct OutputSpec {
  std::string name;
  Datatype datatype;
};

// What a version takes and gives; never changes.
struct Schema {
  std::string model;
  int64_t version = 0;
  std::vector<InputSpec> inputs;
  std::vector<OutputSpec> outputs;
  bool batchable = false;  // the first dimension of every tensor is rows
  int64_t max_request_rows = 0;
  uint64_t max_string_bytes = UINT32_MAX;  // of one element of BYTES
  bool mirror_contents = false;  // typed contents are answered by typed contents
};

// One input: its raw contents, in the request's memory or, converted, in memory of its own.
struct InputData {
  const uint8_t* data = nullptr;
  size_t size = 0;
  std::vector<int64_t> shape;
  std::vector<uint8_t> converted;
};

struct InferRequest {
  std::string id;                 // the client's; empty: one has to be minted
  std::vector<InputData> inputs;  // in the schema's order
  std::vector<uint32_t> outputs;  // indexes into the schema's, in the order of the reply; empty: all
  int64_t rows = 1;
  int64_t event_time_ms = -1;  // -1: the request has none
  int64_t timeout_us = 0;      // 0: none
  bool mirror = false;         // the reply's contents shall be typed, as the request's are
};

}  // namespace trimtab
