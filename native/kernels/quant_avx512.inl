// The primitives of quant_rows.inl in AVX-512 (F, BW, DQ, VL) with VBMI and VNNI. A file that
// includes this keeps a copy of its own, like that of quant_rows.inl.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own intrinsics (gcc.gnu.org bug 105593), wherever they end up.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "kernels/quant.h"
#include "kernels/quant_common.h"

namespace headgate::kernels {
namespace {

struct V {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kTokens = 4;
  static constexpr int kRowsAlone = 4;
  static constexpr int kSums = 2;  // accumulators per row and token of a float product
  static constexpr float code_offset(int) { return 0.0f; }

  static __mmask16 first(int64_t n) {
    return static_cast<__mmask16>(_bzhi_u32(0xffff, n < 0 ? 0 : n > 16 ? 16 : unsigned(n)));
  }
  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(F x) { return _mm512_reduce_add_ps(x); }

  static F from_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static F from_f16(__m256i x) { return _mm512_cvtph_ps(x); }
  static __m256i load_halves(const uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static F bf16(const uint16_t* p) { return from_bf16(load_halves(p)); }
  static F f16(const uint16_t* p) { return from_f16(load_halves(p)); }
  static F halves_n(const uint16_t* p, int64_t n, HalfType half) {
    const __m256i x = _mm256_maskz_loadu_epi16(first(n), p);
    return half == HalfType::bf16 ? from_bf16(x) : from_f16(x);
  }
  static F codes(const uint8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x));
  }

  template <int P, class At>
  static __m512i decoded(const At& at);
  template <int P, class At>
  static void decode(const At& at, uint8_t* codes) {
    _mm512_store_si512(codes, decoded<P>(at));
  }
  template <int P, int S, int R, int T, class Tile, class Factor>
  static void dot(const Tile* tiles, const int8_t* const* q, const Factor& factor, int n,
                  F (&sum)[R][T]);
  template <int P, int S, int R, class At, class Factor>
  static void dot_planes(At at, int64_t stride, const int8_t* q, const Factor& factor, int from,
                         int n, F (&sum)[R][1]);
  static float quantize_block(const float* x, int8_t* q, int32_t* sums);
};

inline __m512i word_at(const uint8_t* p) {
  int64_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm512_set1_epi64(word);
}

// For vpmultishiftqb: bit i of a 64-bit word goes to bit `up` of byte i.
HEADGATE_INLINE __m512i to_byte(int up) {
  alignas(64) uint8_t from[64];
  for (int i = 0; i < 64; ++i) from[i] = static_cast<uint8_t>((i + 64 - up) % 64);
  return _mm512_load_si512(from);
}

// code, with bit `up` of byte i taken from bit i of the word at p.
template <int up>
HEADGATE_INLINE __m512i with_bits(__m512i code, const uint8_t* p) {
  const __m512i bits = _mm512_multishift_epi64_epi8(to_byte(up), word_at(p));
  return _mm512_ternarylogic_epi32(code, bits, _mm512_set1_epi8(1 << up), 0xf8);  // a | (b & c)
}

// q2 is copied to the four 128-bit lanes; rotating lane k right by 2k brings its
// two bits to the bottom, and left by `top` to where the code wants them. They stay
// inside their byte, so rotating 32 bits at a time is as good as bytes.
template <int P, class At>
HEADGATE_INLINE __m512i V::decoded(const At& at) {
  constexpr int top = P - 2;
  const __m512i turn = _mm512_set_epi32(
      (top + 26) % 32, (top + 26) % 32, (top + 26) % 32, (top + 26) % 32, (top + 28) % 32,
      (top + 28) % 32, (top + 28) % 32, (top + 28) % 32, (top + 30) % 32, (top + 30) % 32,
      (top + 30) % 32, (top + 30) % 32, top, top, top, top);
  const __m128i q2 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at.q2));
  __m512i code = _mm512_and_si512(_mm512_rolv_epi32(_mm512_broadcast_i32x4(q2), turn),
                                  _mm512_set1_epi8(static_cast<char>(3 << top)));
  if constexpr (P >= 3) code = with_bits<top - 1>(code, at.q3);
  if constexpr (P >= 4) code = with_bits<top - 2>(code, at.q4);
  if constexpr (P == 8) {
    const __m256i q8 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at.q8));
    const __m512i down = _mm512_set_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i low = _mm512_srlv_epi32(_mm512_broadcast_i64x4(q8), down);
    code = _mm512_ternarylogic_epi32(code, low, _mm512_set1_epi8(15), 0xf8);  // code | (low & 15)
  }
  return code;
}

// One term of a sum: factor[s][i] * (codes . x), half by half if S is 2.
template <int S, class Factor>
HEADGATE_INLINE __m512 add_block(__m512i codes, __m512i x, const Factor& factor, int i,
                                 __m512 sum) {
  const __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, x);
  __m512 scale = _mm512_set1_ps(factor[0][i]);
  if constexpr (S == 2) {
    scale = _mm512_mask_broadcastss_ps(scale, 0xff00, _mm_load_ss(&factor[1][i]));
  }
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sum);
}

// sum[r][t] += factor[r][t][half][block] * (codes of row r) . (q of token t), for n
// blocks; S says whether the halves of a block have factors of their own.
template <int P, int S, int R, int T, class Tile, class Factor>
inline void V::dot(const Tile* tiles, const int8_t* const* q, const Factor& factor, int n,
                   F (&sum)[R][T]) {
  for (int i = 0; i < n; ++i) {
    __m512i code[R];
    HEADGATE_UNROLL
    for (int r = 0; r < R; ++r) code[r] = _mm512_load_si512(tiles[r].codes + i * 64);
    HEADGATE_UNROLL
    for (int t = 0; t < T; ++t) {
      const __m512i x = _mm512_loadu_si512(q[t] + i * 64);
      HEADGATE_UNROLL
      for (int r = 0; r < R; ++r) {
        sum[r][t] = add_block<S>(code[r], x, factor[r][t], i, sum[r][t]);
      }
    }
  }
}

// The same sums in the same order as dot(), for one token and rows that are `stride` blocks
// apart, from planes to sums without a detour through memory. The first block's factor is the
// one at `from`.
template <int P, int S, int R, class At, class Factor>
HEADGATE_INLINE void V::dot_planes(At at, int64_t stride, const int8_t* q, const Factor& factor,
                                   int from, int n, F (&sum)[R][1]) {
  static_assert(R <= 4);
  int64_t one = 8 * stride, three = 24 * stride;
  for (int i = 0; i < n; ++i) {
    // All rows are addressed from the first one's planes; a pointer for every plane of every
    // row, which is what compilers make of this otherwise, does not fit the registers.
    asm("" : "+r"(one), "+r"(three));
    const __m512i x = _mm512_loadu_si512(q + i * 64);
    HEADGATE_UNROLL
    for (int r = 0; r < R; ++r) {
      const int64_t off = r == 3 ? three : r * one;
      At row = {at.q2 + 2 * off, nullptr, nullptr, nullptr};
      if constexpr (P >= 3) row.q3 = at.q3 + off;
      if constexpr (P >= 4) row.q4 = at.q4 + off;
      if constexpr (P == 8) row.q8 = at.q8 + 4 * off;
      sum[r][0] = add_block<S>(decoded<P>(row), x, factor[r][0], from + i, sum[r][0]);
    }
    next_block<P>(at);
  }
}

inline float V::quantize_block(const float* x, int8_t* q, int32_t* sums) {
  F part[4];
  __m512i largest = _mm512_setzero_si512();
  HEADGATE_UNROLL
  for (int i = 0; i < 4; ++i) {
    part[i] = _mm512_loadu_ps(x + 16 * i);
    largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(part[i])));
  }
  const BlockScale scale = block_scale(_mm512_reduce_max_epu32(largest));
  HEADGATE_UNROLL
  for (int i = 0; i < 2; ++i) {
    __m512i sum = _mm512_setzero_si512();
    HEADGATE_UNROLL
    for (int j = 2 * i; j < 2 * i + 2; ++j) {
      __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(part[j], _mm512_set1_ps(scale.inverse)));
      if (scale.inverse == 0) v = _mm512_setzero_si512();  // not finite times 0 is NaN
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16 * j), _mm512_cvtsepi32_epi8(v));
      sum = _mm512_add_epi32(sum, v);
    }
    sums[i] = _mm512_reduce_add_epi32(sum);
  }
  return scale.scale;
}

}  // namespace
}  // namespace headgate::kernels
