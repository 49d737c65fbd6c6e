// Protobuf's wire format: a reader that meets every field of one message, and a writer of fields.
//
// The reader takes and refuses what the parser below python-protobuf does, which
// tests/native/test_infer_message.py holds it to: tags of at most 5 bytes, sizes below 2 GiB, varints
// of at most 10 bytes whose bits beyond 64 are dropped, groups skipped with their ends matched, and no
// deeper nesting than 100. It never reads outside of the message and allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace trimtab::wire {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors travel as they lie in memory");

enum Type : uint32_t { varint = 0, fixed64 = 1, delimited = 2, start_group = 3, end_group = 4, fixed32 = 5 };

constexpr int max_depth = 100;

// What a field of that number and type begins with.
constexpr uint32_t tag(uint32_t number, Type type) { return number << 3 | type; }

// A part of a message.
struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;

  std::string_view text() const { return {reinterpret_cast<const char*>(data), size}; }
};

// Why a message is none, and where.
struct Fault {
  const char* what = nullptr;  // nullptr: nothing is wrong
  const uint8_t* at = nullptr;
};

struct Field {
  uint32_t tag;
  uint64_t number;  // of a varint, fixed32 or fixed64
  Bytes bytes;      // of a delimited one
};

class Reader {
 public:
  Reader(Bytes message, Fault& fault, int depth = max_depth)
      : at_(message.data), end_(message.data + message.size), depth_(depth), fault_(fault) {}

  // Of a message inside this one.
  Reader inside(Bytes message) const { return Reader(message, fault_, depth_ - 1); }

  // The next field, in the message's order; of a group there is the tag only. False: at the end, or at a
  // fault, of this or of another reader of the same message.
  bool next(Field& field) {
    if (at_ == end_ || !sound()) return false;
    if (!read_tag(field.tag)) return false;
    if (field.tag < tag(1, varint)) return fail("a field of number 0");
    if (field.tag == tag(field.tag >> 3, start_group)) return skip_group(field.tag >> 3);
    return read_value(field);
  }

  // The next number of a packed field, likewise.
  bool next_packed(uint64_t& number) { return at_ != end_ && read_varint(number, 10); }

  bool sound() const { return fault_.what == nullptr; }

  bool fail(const char* what) { return fail(what, at_); }
  bool fail(const char* what, const uint8_t* at) {
    fault_ = {what, at};
    return false;
  }

 private:
  bool read_varint(uint64_t& number, int limit) {
    if (at_ != end_ && *at_ < 0x80) {
      number = *at_++;
      return true;
    }
    return read_long_varint(number, limit);
  }

  bool read_long_varint(uint64_t& number, int limit) {
    number = 0;
    for (int index = 0; index < limit; ++index) {
      if (at_ == end_) return fail("a number that is cut off");
      const uint8_t byte = *at_++;
      number |= static_cast<uint64_t>(byte & 0x7f) << (7 * index);
      if (byte < 0x80) return true;
    }
    return fail("a number of too many bytes");
  }

  bool read_tag(uint32_t& tag) {
    uint64_t number;
    if (!read_varint(number, 5)) return false;
    if (number > UINT32_MAX) return fail("a field number that is too large");
    tag = static_cast<uint32_t>(number);
    return true;
  }

  bool read_fixed(uint64_t& number, size_t size) {
    if (static_cast<size_t>(end_ - at_) < size) return fail("a number that is cut off");
    number = 0;
    std::memcpy(&number, at_, size);
    at_ += size;
    return true;
  }

  bool read_bytes(Bytes& bytes) {
    uint64_t size;
    if (!read_varint(size, 5)) return false;
    if (size > static_cast<uint64_t>(end_ - at_)) return fail("a field that is longer than the message");
    bytes = {at_, static_cast<size_t>(size)};
    at_ += size;
    return true;
  }

  bool read_value(Field& field) {
    switch (field.tag & 7) {
      case varint: return read_varint(field.number, 10);
      case fixed64: return read_fixed(field.number, 8);
      case delimited: return read_bytes(field.bytes);
      case fixed32: return read_fixed(field.number, 4);
      case end_group: return fail("the end of a group that did not begin");
    }
    return fail("a field of no type");
  }

  // Field numbers of 0 count as unknown fields in here, as they do below python-protobuf.
  [[gnu::noinline]] bool skip_group(uint32_t number) {
    uint32_t open[max_depth];
    int depth = 0;
    if (depth >= depth_) return fail("groups that are nested too deeply");
    open[depth++] = number;
    while (depth > 0) {
      Field field;
      if (at_ == end_) return fail("a group that does not end");
      if (!read_tag(field.tag)) return false;
      const uint32_t type = field.tag & 7;
      if (type == start_group) {
        if (depth >= depth_) return fail("groups that are nested too deeply");
        open[depth++] = field.tag >> 3;
      } else if (type == end_group) {
        if (open[--depth] != field.tag >> 3) return fail("the end of another group");
      } else if (!read_value(field)) {
        return false;
      }
    }
    return true;
  }

  const uint8_t* at_;
  const uint8_t* end_;
  int depth_;
  Fault& fault_;
};

// Bytes of a number as a varint.
inline size_t varint_size(uint64_t number) {
  const unsigned bits = 64 - static_cast<unsigned>(__builtin_clzll(number | 1));
  return (bits * 9 + 64) / 64;
}

// Bytes of a delimited field with a number below 16.
inline size_t field_size(size_t size) { return 1 + varint_size(size) + size; }

// Writes to memory that was measured before.
class Writer {
 public:
  explicit Writer(uint8_t* to) : to_(to) {}

  void number(uint64_t number) {
    while (number >= 0x80) {
      *to_++ = static_cast<uint8_t>(number) | 0x80;
      number >>= 7;
    }
    *to_++ = static_cast<uint8_t>(number);
  }

  // What precedes the contents of a delimited field.
  void lead(uint32_t field, size_t size) {
    number(tag(field, delimited));
    number(size);
  }

  void bytes(const void* data, size_t size) {
    if (size == 0) return;
    std::memcpy(to_, data, size);
    to_ += size;
  }

  void field(uint32_t number, std::string_view text) {
    lead(number, text.size());
    bytes(text.data(), text.size());
  }

 private:
  uint8_t* to_;
};

}  // namespace trimtab::wire
