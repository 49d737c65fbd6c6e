// InferTensorContents, the typed form of a tensor's contents, from and to the raw form.
#pragma once

#include <array>
#include <optional>
#include <string_view>

#include "infer_request.h"
#include "protobuf_wire.h"

namespace trimtab {

constexpr uint32_t contents_fields = 9;  // numbers 1 to 8
constexpr size_t length_size = 4;        // of what precedes an element of BYTES in the raw form

// The field that carries a datatype; 0: it travels as raw contents only.
uint32_t contents_field(Datatype datatype);
std::string_view contents_field_name(uint32_t number);

struct ContentsCount {
  std::array<size_t, contents_fields> values{};  // of each field
  size_t strings_size = 0;                       // bytes of all values of field 8
};

// Adds what the message holds. A message may come in parts.
void count_contents(wire::Reader contents, ContentsCount& count);

// The contents of an InferInputTensor, which was parsed before, in the raw form of a datatype that has a
// field; `to` has room for as many values as were counted. Returns the first value that the datatype does
// not have; what was written is of no use then.
std::optional<int64_t> contents_to_raw(wire::Bytes input, Datatype datatype, uint8_t* to);

// Bytes of the message for a tensor of a datatype that has a field, and the message.
size_t contents_size(Datatype datatype, wire::Bytes raw);
void write_contents(wire::Writer& writer, Datatype datatype, wire::Bytes raw);

}  // namespace trimtab
