// XXH64 of a request's id: decides which of two versions answers it.
//
// The published algorithm (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md), so that anybody can
// tell from an id, in any language, which version answered; a few ns for an id.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace trimtab {

namespace xxh64 {

constexpr uint64_t P1 = 0x9E3779B185EBCA87, P2 = 0xC2B2AE3D27D4EB4F, P3 = 0x165667B19E3779F9,
                   P4 = 0x85EBCA77C2B2AE63, P5 = 0x27D4EB2F165667C5;

inline uint64_t rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

// Little-endian, as protobuf_wire.h takes for granted too.
template <class T>
inline uint64_t read(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

inline uint64_t round(uint64_t lane, uint64_t input) { return rotate(lane + input * P2, 31) * P1; }

inline uint64_t merge(uint64_t hash, uint64_t lane) { return (hash ^ round(0, lane)) * P1 + P4; }

}  // namespace xxh64

inline uint64_t id_hash(std::string_view id, uint64_t seed) {
  using namespace xxh64;
  const char* at = id.data();
  const char* const end = at + id.size();
  uint64_t hash = seed + P5;
  if (id.size() >= 32) {
    uint64_t lanes[4] = {seed + P1 + P2, seed + P2, seed, seed - P1};
    for (; end - at >= 32; at += 32) {
      for (int lane = 0; lane < 4; ++lane) {
        lanes[lane] = round(lanes[lane], read<uint64_t>(at + 8 * lane));
      }
    }
    hash = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    for (const uint64_t lane : lanes) hash = merge(hash, lane);
  }
  hash += id.size();
  for (; end - at >= 8; at += 8) hash = rotate(hash ^ round(0, read<uint64_t>(at)), 27) * P1 + P4;
  if (end - at >= 4) {
    hash = rotate(hash ^ read<uint32_t>(at) * P1, 23) * P2 + P3;
    at += 4;
  }
  for (; at != end; ++at) hash = rotate(hash ^ read<uint8_t>(at) * P5, 11) * P1;
  hash = (hash ^ hash >> 33) * P2;
  hash = (hash ^ hash >> 29) * P3;
  return hash ^ hash >> 32;
}

}  // namespace trimtab
