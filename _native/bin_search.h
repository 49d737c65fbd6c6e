// The bins of a tile of numbers: for every value the number of its column's edges that are <= it.
//
// The edges of a column lie as a search tree in one array of 2^levels floats: the children of node i
// are 2i and 2i + 1, node 0 is no node, and what no edge fills is NaN, which no value reaches. A
// value goes down as `node = 2 * node + (value >= tree[node])`: no step depends on the data but by
// a compare, so that no distribution is slower than another. Every kernel compares the same float32
// and nothing is computed of them, so all agree to the bit.
//
// A level of up to 16 (AVX2: 8) nodes fits a register, and 16 (8) rows of a column look up their
// nodes in it by one permutation; of a larger level, the decisions of the first levels tell which
// register. Gathers would do for any level, but crawl where a CPU is mended against Downfall.
//
// `benchmarks/drift_update.py --kernel ... --cases bins64_features30_rows64`, ns a value with all that an update
// does, Xeon with AVX-512 of 2023, gcc 12. Before, two levels of counting: 4.8 and 11 ns.
//             64 bins  256 bins
//   avx512       0.9       1.4
//   avx2         1.8       2.9   (4.3 with the last two levels by permutation too)
//   portable     2.9       4.6
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86_KERNELS 1
#include <immintrin.h>
#else
#define HAS_X86_KERNELS 0
#endif

#if defined(__GNUC__)
#define INLINED static inline __attribute__((always_inline))
#else
#define INLINED static inline
#endif

enum {
  TILE_ROWS = 64,     // a multiple of every kernel's rows at a time
  TILE_COLUMNS = 16,  // a tile of values and one of slots are 8 KiB
  MIN_LEVELS = 4,     // 256 bins, the most there are, have 8
};

// Writes the slots of rows x columns values; NaN is in slot `missing`. Values and slots lie column by
// column, TILE_ROWS apart, and so do the trees, 2^levels apart. Up to the next multiple of 16 rows
// values are read and slots written that mean nothing.
typedef void (*BinSearch)(const float *values, int rows, int columns, const float *trees, int levels,
                          int32_t missing, int32_t *slots);

enum { KERNEL_PORTABLE, KERNEL_AVX2, KERNEL_AVX512, KERNELS };

static const char *const kernel_names[KERNELS] = {"portable", "avx2", "avx512"};

// The rest of the way down for one value, without a branch even for NaN.
INLINED int32_t slot_below(float value, uint32_t node, const float *tree, int level, int levels,
                           int32_t missing) {
  for (; level < levels; level++) node = 2 * node + (value >= tree[node]);
  const int32_t bin = (int32_t)(node - (1u << levels)), is_missing = -(int32_t)(value != value);
  return (bin & ~is_missing) | (missing & is_missing);
}

// Every kernel's columns, unrolled for each number of levels.
#define SEARCH_COLUMNS(column_search)                                                              \
  for (int column = 0; column < columns; column++) {                                               \
    switch (levels) {                                                                              \
      case 4: column_search(values, rows, trees, 4, missing, slots); break;                        \
      case 5: column_search(values, rows, trees, 5, missing, slots); break;                        \
      case 6: column_search(values, rows, trees, 6, missing, slots); break;                        \
      case 7: column_search(values, rows, trees, 7, missing, slots); break;                        \
      default: column_search(values, rows, trees, 8, missing, slots); break;                       \
    }                                                                                              \
    values += TILE_ROWS, slots += TILE_ROWS, trees += (intptr_t)1 << levels;                       \
  }

// Eight rows at a time count the edges among the first 15 nodes, which compilers make SIMD of: gcc of
// 32 rows at once, so what is left of those goes all the way down (64 bins: 2.1 against 3.1 ns).
INLINED void search_column_portable(const float *values, int rows, const float *tree, int levels,
                                    int32_t missing, int32_t *slots) {
  int row = 0;
  for (; row < rows / 32 * 32; row += 8) {
    uint32_t nodes[8];
    for (int lane = 0; lane < 8; lane++) nodes[lane] = 16;
    for (int node = 1; node < 16; node++) {
      const float edge = tree[node];
      for (int lane = 0; lane < 8; lane++) nodes[lane] += values[row + lane] >= edge;
    }
    for (int lane = 0; lane < 8; lane++) {
      slots[row + lane] = slot_below(values[row + lane], nodes[lane], tree, 4, levels, missing);
    }
  }
  for (; row < rows; row++) slots[row] = slot_below(values[row], 1, tree, 0, levels, missing);
}

static void search_portable(const float *values, int rows, int columns, const float *trees, int levels,
                            int32_t missing, int32_t *slots) {
  SEARCH_COLUMNS(search_column_portable)
}

#if HAS_X86_KERNELS

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f")))

// Where one of 8, 16 or 32 nodes is wanted; `went` is what the value did at the first levels.
AVX2 INLINED __m256 of_8_nodes(const float *level, __m256i node) {
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(level), node);
}

AVX2 INLINED __m256 of_16_nodes(const float *level, __m256i node, const __m256 *went) {
  return _mm256_blendv_ps(of_8_nodes(level, node), of_8_nodes(level + 8, node), went[0]);
}

AVX2 INLINED __m256 of_32_nodes(const float *level, __m256i node, const __m256 *went) {
  return _mm256_blendv_ps(of_16_nodes(level, node, went + 1), of_16_nodes(level + 16, node, went + 1),
                          went[0]);
}

// 2 * node + (value >= edge): true is -1.
AVX2 INLINED __m256i child_avx2(__m256i node, __m256 is_right) {
  return _mm256_sub_epi32(_mm256_add_epi32(node, node), _mm256_castps_si256(is_right));
}

// Two of the last of 8 levels are one value at a time: 16 permutations and 15 blends are slower.
AVX2 INLINED void search_column_avx2(const float *values, int rows, const float *tree, int levels,
                                     int32_t missing, int32_t *slots) {
  const int side_by_side = levels < 6 ? levels : 6;
  for (int row = 0; row < rows; row += 8) {
    const __m256 x = _mm256_loadu_ps(values + row);
    __m256 went[6];
    went[0] = _mm256_cmp_ps(x, _mm256_set1_ps(tree[1]), _CMP_GE_OQ);
    __m256i node = child_avx2(_mm256_set1_epi32(1), went[0]);
    went[1] = _mm256_cmp_ps(x, of_8_nodes(tree, node), _CMP_GE_OQ);  // nodes 0 to 7: three levels
    node = child_avx2(node, went[1]);
    went[2] = _mm256_cmp_ps(x, of_8_nodes(tree, node), _CMP_GE_OQ);
    node = child_avx2(node, went[2]);
    went[3] = _mm256_cmp_ps(x, of_8_nodes(tree + 8, node), _CMP_GE_OQ);
    node = child_avx2(node, went[3]);
    if (levels > 4) {
      went[4] = _mm256_cmp_ps(x, of_16_nodes(tree + 16, node, went), _CMP_GE_OQ);
      node = child_avx2(node, went[4]);
    }
    if (levels > 5) {
      went[5] = _mm256_cmp_ps(x, of_32_nodes(tree + 32, node, went), _CMP_GE_OQ);
      node = child_avx2(node, went[5]);
    }
    if (levels == side_by_side) {
      const __m256 is_missing = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
      node = _mm256_sub_epi32(node, _mm256_set1_epi32(1 << levels));
      node = _mm256_blendv_epi8(node, _mm256_set1_epi32(missing), _mm256_castps_si256(is_missing));
    }
    _mm256_storeu_si256((__m256i *)(slots + row), node);
  }
  if (levels == side_by_side) return;
  for (int row = 0; row < rows; row++) {
    slots[row] = slot_below(values[row], (uint32_t)slots[row], tree, side_by_side, levels, missing);
  }
}

AVX2 static void search_avx2(const float *values, int rows, int columns, const float *trees, int levels,
                             int32_t missing, int32_t *slots) {
  SEARCH_COLUMNS(search_column_avx2)
}

// 2 * node + is_right
AVX512 INLINED __m512i child_avx512(__m512i node, __mmask16 is_right) {
  const __m512i doubled = _mm512_add_epi32(node, node);
  return _mm512_mask_add_epi32(doubled, is_right, doubled, _mm512_set1_epi32(1));
}

// The whole tree stays in registers, also the 256 floats of eight levels.
AVX512 INLINED void search_column_avx512(const float *values, int rows, const float *tree, int levels,
                                         int32_t missing, int32_t *slots) {
  __m512 nodes[16];
  for (int part = 0; part < 1 << (levels - 4); part++) nodes[part] = _mm512_loadu_ps(tree + 16 * part);
  const __m512 root = _mm512_set1_ps(tree[1]);
  for (int row = 0; row < rows; row += 16) {
    const __m512 x = _mm512_loadu_ps(values + row);
    const __mmask16 first = _mm512_cmp_ps_mask(x, root, _CMP_GE_OQ);
    __m512i node = child_avx512(_mm512_set1_epi32(1), first);
    __m512 edge = _mm512_permutexvar_ps(node, nodes[0]);  // nodes 0 to 15: four levels
    const __mmask16 second = _mm512_cmp_ps_mask(x, edge, _CMP_GE_OQ);
    node = child_avx512(node, second);
    edge = _mm512_permutexvar_ps(node, nodes[0]);
    node = child_avx512(node, _mm512_cmp_ps_mask(x, edge, _CMP_GE_OQ));
    edge = _mm512_permutexvar_ps(node, nodes[0]);
    node = child_avx512(node, _mm512_cmp_ps_mask(x, edge, _CMP_GE_OQ));
    if (levels > 4) {
      edge = _mm512_permutexvar_ps(node, nodes[1]);
      node = child_avx512(node, _mm512_cmp_ps_mask(x, edge, _CMP_GE_OQ));
    }
    if (levels > 5) {
      edge = _mm512_permutex2var_ps(nodes[2], node, nodes[3]);
      node = child_avx512(node, _mm512_cmp_ps_mask(x, edge, _CMP_GE_OQ));
    }
    if (levels > 6) {
      edge = _mm512_mask_blend_ps(first, _mm512_permutex2var_ps(nodes[4], node, nodes[5]),
                                  _mm512_permutex2var_ps(nodes[6], node, nodes[7]));
      node = child_avx512(node, _mm512_cmp_ps_mask(x, edge, _CMP_GE_OQ));
    }
    if (levels > 7) {
      const __m512 left = _mm512_mask_blend_ps(second, _mm512_permutex2var_ps(nodes[8], node, nodes[9]),
                                               _mm512_permutex2var_ps(nodes[10], node, nodes[11]));
      const __m512 right = _mm512_mask_blend_ps(second, _mm512_permutex2var_ps(nodes[12], node, nodes[13]),
                                                _mm512_permutex2var_ps(nodes[14], node, nodes[15]));
      edge = _mm512_mask_blend_ps(first, left, right);
      node = child_avx512(node, _mm512_cmp_ps_mask(x, edge, _CMP_GE_OQ));
    }
    const __m512i bin = _mm512_sub_epi32(node, _mm512_set1_epi32(1 << levels));
    const __mmask16 is_missing = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    _mm512_storeu_si512(slots + row, _mm512_mask_mov_epi32(bin, is_missing, _mm512_set1_epi32(missing)));
  }
}

AVX512 static void search_avx512(const float *values, int rows, int columns, const float *trees,
                                 int levels, int32_t missing, int32_t *slots) {
  SEARCH_COLUMNS(search_column_avx512)
}

#undef AVX2
#undef AVX512

#endif

// NULL if this CPU, or this build, cannot run that kernel.
static BinSearch bin_search(int kernel) {
  if (kernel == KERNEL_PORTABLE) return search_portable;
#if HAS_X86_KERNELS
  __builtin_cpu_init();
  if (kernel == KERNEL_AVX2 && __builtin_cpu_supports("avx2")) return search_avx2;
  if (kernel == KERNEL_AVX512 && __builtin_cpu_supports("avx512f")) return search_avx512;
#endif
  return 0;
}

// Counts a tile of slots, column by column `width` counts apart. Four columns at a time: counting one
// slot twice takes as long as its first store, so a column full of ties would wait for itself.
static void count_slots(const int32_t *slots, int rows, int columns, uint64_t *counts, intptr_t width) {
  int column = 0;
  for (; column + 4 <= columns; column += 4, slots += 4 * TILE_ROWS, counts += 4 * width) {
    uint64_t *const second = counts + width, *const third = second + width, *const fourth = third + width;
    for (int row = 0; row < rows; row++) {
      counts[slots[row]]++;
      second[slots[TILE_ROWS + row]]++;
      third[slots[2 * TILE_ROWS + row]]++;
      fourth[slots[3 * TILE_ROWS + row]]++;
    }
  }
  for (; column < columns; column++, slots += TILE_ROWS, counts += width) {
    for (int row = 0; row < rows; row++) counts[slots[row]]++;
  }
}

// Of `rows` rows of `width` floats the first `columns` as a tile, column by column. Every x86-64 has what
// turns four rows of four (1.17 ns a value in all by single stores, 0.86 so).
static void load_floats(const char *source, float *values, int rows, int columns, intptr_t width) {
  int row = 0;
#if HAS_X86_KERNELS
  const int whole = columns & ~3;
  for (; row + 4 <= rows; row += 4) {
    const char *const at = source + row * width * sizeof(float);
    for (int column = 0; column < whole; column += 4) {
      __m128 rows_of[4];
      for (int each = 0; each < 4; each++) {
        rows_of[each] = _mm_loadu_ps((const float *)(at + (each * width + column) * sizeof(float)));
      }
      _MM_TRANSPOSE4_PS(rows_of[0], rows_of[1], rows_of[2], rows_of[3]);
      for (int each = 0; each < 4; each++) {
        _mm_storeu_ps(values + (column + each) * TILE_ROWS + row, rows_of[each]);
      }
    }
    for (int column = whole; column < columns; column++) {
      for (int each = 0; each < 4; each++) {
        memcpy(values + column * TILE_ROWS + row + each, at + (each * width + column) * sizeof(float),
               sizeof(float));
      }
    }
  }
#endif
  for (; row < rows; row++) {
    const char *const at = source + row * width * sizeof(float);
    for (int column = 0; column < columns; column++) {
      memcpy(values + column * TILE_ROWS + row, at + column * sizeof(float), sizeof(float));
    }
  }
}

#undef SEARCH_COLUMNS
#undef INLINED
