// AVX2 with FMA and F16C.
#include <immintrin.h>

#include "kernels/quant_common.h"
#include "kernels/quant_isa.h"

namespace headgate::kernels {
namespace {

struct V {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kTokens = 2;
  static constexpr int kRowsAlone = 1;
  static constexpr int kSums = 2;
  static constexpr float code_offset(int) { return 0.0f; }

  // The first n lanes set.
  static __m256i first(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int limit = n < 0 ? 0 : n > 8 ? 8 : static_cast<int>(n);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), lane);
  }
  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(F x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

  static F from_bf16(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static F from_f16(__m128i x) { return _mm256_cvtph_ps(x); }
  static __m128i load_halves(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  static F bf16(const uint16_t* p) { return from_bf16(load_halves(p)); }
  static F f16(const uint16_t* p) { return from_f16(load_halves(p)); }
  static F halves_n(const uint16_t* p, int64_t n, HalfType half) {
    __m128i x = _mm_setzero_si128();
    if (n >= 8) {
      x = load_halves(p);
    } else if (n > 0) {
      alignas(16) uint16_t part[8] = {};
      for (int64_t i = 0; i < n; ++i) part[i] = p[i];
      x = load_halves(part);
    }
    return half == HalfType::bf16 ? from_bf16(x) : from_f16(x);
  }
  static F codes(const uint8_t* p) {
    const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x));
  }

  template <int P, class At>
  static void decode(const At& at, uint8_t* codes);
  template <int P, int S, int R, int T, class Tile, class Factor>
  static void dot(const Tile* tiles, const int8_t* const* q, const Factor& factor, int n,
                  F (&sum)[R][T]);
  static float quantize_block(const float* x, int8_t* q, int32_t* sums);
};

inline __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// `value` in every byte whose bit is set among the 32 bits at p, else 0.
inline __m256i spread(const uint8_t* p, int value) {
  int bits;
  std::memcpy(&bits, p, sizeof bits);
  const __m256i byte_of =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte_of);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of), bit_of);
  return _mm256_and_si256(set, _mm256_set1_epi8(static_cast<char>(value)));
}

template <int P, class At>
void V::decode(const At& at, uint8_t* codes) {
  constexpr int top = P - 2;
  const __m256i q2 = _mm256_broadcastsi128_si256(load_halves(at.q2));
  __m256i q8 = _mm256_setzero_si256();
  if constexpr (P == 8) q8 = load_bytes(at.q8);
  HEADGATE_UNROLL
  for (int half = 0; half < 2; ++half) {
    // q2 is in both 128-bit lanes, which take different pairs of its bits.
    const __m256i down = half == 0 ? _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)
                                   : _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6);
    __m256i code = _mm256_and_si256(_mm256_srlv_epi32(q2, down), _mm256_set1_epi8(3));
    code = _mm256_slli_epi16(code, top);  // stays inside the byte
    if constexpr (P >= 3) {
      code = _mm256_or_si256(code, spread(at.q3 + 4 * half, 1 << (top - 1)));
    }
    if constexpr (P >= 4) {
      code = _mm256_or_si256(code, spread(at.q4 + 4 * half, 1 << (top - 2)));
    }
    if constexpr (P == 8) {
      const __m256i nibble = half == 0 ? q8 : _mm256_srli_epi16(q8, 4);
      code = _mm256_or_si256(code, _mm256_and_si256(nibble, _mm256_set1_epi8(15)));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + 32 * half), code);
  }
}

// Sums of four products of codes and activations each, as 32-bit integers.
// maddubs adds pairs into 16 bits: 2 * 15 * 128 fits, 2 * 255 * 128 would saturate,
// so 8-bit codes are multiplied a nibble at a time.
template <int P>
inline __m256i dot4(__m256i code, __m256i x) {
  if constexpr (P < 8) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(code, x), _mm256_set1_epi16(1));
  } else {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(code, nibble), x);
    const __m256i high =
        _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(code, 4), nibble), x);
    return _mm256_add_epi32(_mm256_madd_epi16(low, _mm256_set1_epi16(1)),
                            _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
  }
}

// See AVX-512's.
template <int P, int S, int R, int T, class Tile, class Factor>
inline void V::dot(const Tile* tiles, const int8_t* const* q, const Factor& factor, int n,
                   F (&sum)[R][T]) {
  for (int i = 0; i < n; ++i) {
    HEADGATE_UNROLL
    for (int t = 0; t < T; ++t) {
      const __m256i x0 = load_bytes(q[t] + i * 64), x1 = load_bytes(q[t] + i * 64 + 32);
      HEADGATE_UNROLL
      for (int r = 0; r < R; ++r) {
        const uint8_t* codes = tiles[r].codes + i * 64;
        const __m256i dot0 = dot4<P>(load_bytes(codes), x0);
        const __m256i dot1 = dot4<P>(load_bytes(codes + 32), x1);
        const F scale = set1(factor[r][t][0][i]);
        if constexpr (S == 1) {
          sum[r][t] = fma(_mm256_cvtepi32_ps(_mm256_add_epi32(dot0, dot1)), scale, sum[r][t]);
        } else {
          sum[r][t] = fma(_mm256_cvtepi32_ps(dot0), scale, sum[r][t]);
          sum[r][t] = fma(_mm256_cvtepi32_ps(dot1), set1(factor[r][t][1][i]), sum[r][t]);
        }
      }
    }
  }
}

inline int32_t sum_epi32(__m256i x) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

inline uint32_t max_epu32(__m256i x) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1))));
}

float V::quantize_block(const float* x, int8_t* q, int32_t* sums) {
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < 64; i += 8) {
    const __m256i bits = _mm256_castps_si256(load(x + i));
    largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  }
  const BlockScale scale = block_scale(max_epu32(largest));
  const F inverse = set1(scale.inverse);
  // Not finite times 0 is NaN, and its integer not 0.
  const __m256i keep = _mm256_set1_epi32(scale.inverse == 0 ? 0 : -1);
  for (int half = 0; half < 2; ++half) {
    __m256i v[4];
    HEADGATE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const F scaled = mul(load(x + half * 32 + i * 8), inverse);
      v[i] = _mm256_and_si256(_mm256_cvtps_epi32(scaled), keep);
    }
    const __m256i pairs =
        _mm256_add_epi32(_mm256_add_epi32(v[0], v[1]), _mm256_add_epi32(v[2], v[3]));
    sums[half] = sum_epi32(pairs);
    // Packing works inside 128-bit lanes; the permutation puts the fours in order.
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + half * 32),
                        _mm256_permutevar8x32_epi32(bytes, order));
  }
  return scale.scale;
}

}  // namespace
}  // namespace headgate::kernels

#include "kernels/dense_rows.inl"

namespace headgate::kernels {

constexpr QuantKernels kQuantAvx2 = {quantize, quant_rows, exact_rows, dense_rows};

}  // namespace headgate::kernels
