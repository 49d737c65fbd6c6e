#include "typed_contents.h"

namespace trimtab {
namespace {

using wire::Bytes;
using wire::Field;
using wire::Reader;
using wire::tag;

size_t count_packed(Reader reader) {
  size_t count = 0;
  for (uint64_t number; reader.next_packed(number);) ++count;
  return count;
}

// Visits the values of one field, packed or not, in order: `visit` gets whatever has its number.
template <class Visit>
void visit_field(Bytes input, uint32_t number, Visit visit) {
  wire::Fault none;  // the message was parsed before
  Reader reader(input, none);
  for (Field field; reader.next(field);) {
    if (field.tag != tag(5, wire::delimited)) continue;
    Reader contents = reader.inside(field.bytes);
    for (Field value; contents.next(value);) {
      if (value.tag >> 3 == number) visit(contents, value);
    }
  }
}

template <class Visit>
void visit_varints(Bytes input, uint32_t number, Visit visit) {
  visit_field(input, number, [&](const Reader& contents, const Field& field) {
    if (field.tag == tag(number, wire::varint)) {
      visit(field.number);
    } else if (field.tag == tag(number, wire::delimited)) {
      Reader packed = contents.inside(field.bytes);
      for (uint64_t value; packed.next_packed(value);) visit(value);
    }
  });
}

// `Carried`: the type of the field's numbers. Beyond its bits a varint does not count.
template <class Carried, class Value>
std::optional<int64_t> store_integers(Bytes input, uint32_t number, uint8_t* to) {
  std::optional<int64_t> beyond;
  visit_varints(input, number, [&](uint64_t varint) {
    const Carried carried = static_cast<Carried>(varint);
    const Value value = static_cast<Value>(carried);
    if (static_cast<Carried>(value) != carried && !beyond) beyond = carried;
    std::memcpy(to, &value, sizeof value);
    to += sizeof value;
  });
  return beyond;
}

void store_bools(Bytes input, uint8_t* to) {
  visit_varints(input, 1, [&](uint64_t varint) { *to++ = varint != 0; });
}

void store_floats(Bytes input, uint32_t number, size_t size, uint8_t* to) {
  visit_field(input, number, [&](const Reader&, const Field& field) {
    if (field.tag == tag(number, wire::delimited)) {
      if (field.bytes.size > 0) std::memcpy(to, field.bytes.data, field.bytes.size);
      to += field.bytes.size;
    } else if (field.tag == tag(number, size == 4 ? wire::fixed32 : wire::fixed64)) {
      std::memcpy(to, &field.number, size);
      to += size;
    }
  });
}

void store_strings(Bytes input, uint8_t* to) {
  visit_field(input, 8, [&](const Reader&, const Field& field) {
    if (field.tag != tag(8, wire::delimited)) return;
    const uint32_t length = static_cast<uint32_t>(field.bytes.size);
    std::memcpy(to, &length, length_size);
    if (length > 0) std::memcpy(to + length_size, field.bytes.data, length);
    to += length_size + length;
  });
}

// Visits the varints that carry a tensor of integers or bools: a negative number has all 64 bits.
template <class Value, class Visit>
void visit_values(Bytes raw, Visit visit) {
  for (size_t at = 0; raw.size - at >= sizeof(Value); at += sizeof(Value)) {
    Value value;
    std::memcpy(&value, raw.data + at, sizeof value);
    visit(static_cast<uint64_t>(value));  // extends the sign
  }
}

template <class Visit>
void visit_tensor(Datatype datatype, Bytes raw, Visit visit) {
  switch (datatype) {
    case Datatype::BOOL: return visit_values<uint8_t>(raw, [&](uint64_t value) { visit(value != 0); });
    case Datatype::INT8: return visit_values<int8_t>(raw, visit);
    case Datatype::INT16: return visit_values<int16_t>(raw, visit);
    case Datatype::INT32: return visit_values<int32_t>(raw, visit);
    case Datatype::INT64: return visit_values<int64_t>(raw, visit);
    case Datatype::UINT8: return visit_values<uint8_t>(raw, visit);
    case Datatype::UINT16: return visit_values<uint16_t>(raw, visit);
    case Datatype::UINT32: return visit_values<uint32_t>(raw, visit);
    case Datatype::UINT64: return visit_values<uint64_t>(raw, visit);
    case Datatype::FP16: case Datatype::BF16: case Datatype::FP32: case Datatype::FP64:
    case Datatype::BYTES: return;
  }
}

// Visits the whole elements of a BYTES tensor.
template <class Visit>
void visit_elements(Bytes raw, Visit visit) {
  for (size_t at = 0; raw.size - at >= length_size;) {
    uint32_t length;
    std::memcpy(&length, raw.data + at, length_size);
    at += length_size;
    if (length > raw.size - at) return;
    visit(Bytes{raw.data + at, length});
    at += length;
  }
}

// Bytes of the packed numbers of a tensor that is not BYTES.
size_t packed_size(Datatype datatype, Bytes raw) {
  if (datatype == Datatype::FP32 || datatype == Datatype::FP64) return raw.size;
  size_t size = 0;
  visit_tensor(datatype, raw, [&](uint64_t value) { size += wire::varint_size(value); });
  return size;
}

}  // namespace

uint32_t contents_field(Datatype datatype) {
  switch (datatype) {
    case Datatype::BOOL: return 1;
    case Datatype::INT8: case Datatype::INT16: case Datatype::INT32: return 2;
    case Datatype::INT64: return 3;
    case Datatype::UINT8: case Datatype::UINT16: case Datatype::UINT32: return 4;
    case Datatype::UINT64: return 5;
    case Datatype::FP32: return 6;
    case Datatype::FP64: return 7;
    case Datatype::BYTES: return 8;
    case Datatype::FP16: case Datatype::BF16: return 0;
  }
  return 0;
}

std::string_view contents_field_name(uint32_t number) {
  static constexpr std::string_view names[contents_fields] = {
      "", "bool_contents", "int_contents", "int64_contents", "uint_contents",
      "uint64_contents", "fp32_contents", "fp64_contents", "bytes_contents",
  };
  return names[number];
}

void count_contents(Reader contents, ContentsCount& count) {
  for (Field field; contents.next(field);) {
    const uint32_t number = field.tag >> 3;
    switch (field.tag) {
      case tag(1, wire::varint): case tag(2, wire::varint): case tag(3, wire::varint):
      case tag(4, wire::varint): case tag(5, wire::varint): case tag(6, wire::fixed32):
      case tag(7, wire::fixed64):
        ++count.values[number];
        break;
      case tag(1, wire::delimited): case tag(2, wire::delimited): case tag(3, wire::delimited):
      case tag(4, wire::delimited): case tag(5, wire::delimited):
        count.values[number] += count_packed(contents.inside(field.bytes));
        break;
      case tag(6, wire::delimited): case tag(7, wire::delimited): {
        const size_t size = number == 6 ? 4 : 8;
        if (field.bytes.size % size != 0) {
          contents.fail("packed numbers of which one is cut off", field.bytes.data);
          return;
        }
        count.values[number] += field.bytes.size / size;
        break;
      }
      case tag(8, wire::delimited):
        ++count.values[number];
        count.strings_size += field.bytes.size;
        break;
      default: break;
    }
  }
}

std::optional<int64_t> contents_to_raw(Bytes input, Datatype datatype, uint8_t* to) {
  const uint32_t number = contents_field(datatype);
  switch (datatype) {
    case Datatype::INT8: return store_integers<int32_t, int8_t>(input, number, to);
    case Datatype::INT16: return store_integers<int32_t, int16_t>(input, number, to);
    case Datatype::INT32: return store_integers<int32_t, int32_t>(input, number, to);
    case Datatype::INT64: return store_integers<int64_t, int64_t>(input, number, to);
    case Datatype::UINT8: return store_integers<uint32_t, uint8_t>(input, number, to);
    case Datatype::UINT16: return store_integers<uint32_t, uint16_t>(input, number, to);
    case Datatype::UINT32: return store_integers<uint32_t, uint32_t>(input, number, to);
    case Datatype::UINT64: return store_integers<uint64_t, uint64_t>(input, number, to);
    case Datatype::BOOL: store_bools(input, to); break;
    case Datatype::FP32: case Datatype::FP64:
      store_floats(input, number, element_size(datatype), to);
      break;
    case Datatype::BYTES: store_strings(input, to); break;
    case Datatype::FP16: case Datatype::BF16: break;
  }
  return std::nullopt;
}

size_t contents_size(Datatype datatype, Bytes raw) {
  size_t size = 0;
  if (datatype == Datatype::BYTES) {
    visit_elements(raw, [&](Bytes element) { size += wire::field_size(element.size); });
  } else if (raw.size > 0) {
    size = wire::field_size(packed_size(datatype, raw));
  }
  return size;
}

void write_contents(wire::Writer& writer, Datatype datatype, Bytes raw) {
  const uint32_t number = contents_field(datatype);
  if (datatype == Datatype::BYTES) {
    visit_elements(raw, [&](Bytes element) { writer.field(number, element.text()); });
  } else if (raw.size > 0) {
    writer.lead(number, packed_size(datatype, raw));
    if (datatype == Datatype::FP32 || datatype == Datatype::FP64) {
      writer.bytes(raw.data, raw.size);
    } else {
      visit_tensor(datatype, raw, [&](uint64_t value) { writer.number(value); });
    }
  }
}

}  // namespace trimtab
