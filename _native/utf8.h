// Whether a client's bytes are UTF-8, as protobuf demands of a string.
#pragma once

#include <cstdint>
#include <cstring>

#include "protobuf_wire.h"

namespace trimtab::wire {

// Bytes of the character that begins there; 0: none does.
inline size_t character_size(const uint8_t* at, size_t size) {
  const uint8_t first = at[0];
  if (first < 0x80) return 1;
  const auto continues = [&](size_t index) { return index < size && (at[index] & 0xc0) == 0x80; };
  if (first < 0xc2) return 0;
  if (first < 0xe0) return continues(1) ? 2 : 0;
  if (!continues(1) || !continues(2)) return 0;
  if (first < 0xf0) {
    if (first == 0xe0 && at[1] < 0xa0) return 0;   // overlong
    if (first == 0xed && at[1] >= 0xa0) return 0;  // surrogates
    return 3;
  }
  if (!continues(3) || first > 0xf4) return 0;
  if (first == 0xf0 && at[1] < 0x90) return 0;   // overlong
  if (first == 0xf4 && at[1] >= 0x90) return 0;  // beyond U+10FFFF
  return 4;
}

inline bool is_utf8(Bytes text) {
  for (size_t at = 0; at < text.size;) {
    uint64_t eight;
    if (text.size - at >= sizeof eight) {
      std::memcpy(&eight, text.data + at, sizeof eight);
      if ((eight & 0x8080808080808080) == 0) {
        at += sizeof eight;
        continue;
      }
    }
    const size_t size = character_size(text.data + at, text.size - at);
    if (size == 0) return false;
    at += size;
  }
  return true;
}

}  // namespace trimtab::wire
