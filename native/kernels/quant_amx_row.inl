// A row times single tokens in AVX-512, to the bit what quant_amx.cpp computes with
// tiles: there, tiles would cost more than they save, and reading one row after the
// other is what memory likes best.
#include "kernels/quant_avx512.inl"
#include "kernels/quant_tile.inl"

namespace headgate::kernels {
namespace {

// A token's part of a tile.
struct TokenPart {
  const int8_t* q;
  const float* scales;
  const float* sums;
};

// Blocks up to a multiple of four, filled up with zeros.
template <int G>
struct PaddedPart {
  alignas(64) int8_t q[kTile * 64] = {};
  float scales[kTile] = {}, sums[2 * kTile] = {};

  PaddedPart(const TokenPart& x, int n) {
    std::memcpy(q, x.q, static_cast<size_t>(n) * 64);
    std::memcpy(scales, x.scales, static_cast<size_t>(n) * sizeof(float));
    std::memcpy(sums, x.sums, static_cast<size_t>(n * 64 / G) * sizeof(float));
  }
};

HEADGATE_INLINE __m512i add_pairs(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

// Codes times activations of four blocks, added up in every 128-bit lane: lane k of the
// result has the sums of the k-th quarters of the four blocks.
HEADGATE_INLINE __m512i four_dots(const uint8_t* codes, const int8_t* q) {
  __m512i dot[4];
  HEADGATE_UNROLL
  for (int i = 0; i < 4; ++i) {
    dot[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_load_si512(codes + 64 * i),
                                 _mm512_loadu_si512(q + 64 * i));
  }
  const __m512i low = add_pairs(dot[0], dot[1]), high = add_pairs(dot[2], dot[3]);
  return _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
}

HEADGATE_INLINE __m128i add_halves(__m256i x) {
  return _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

// total + the product of n blocks, in the order of quant_amx.cpp: element j of `sum` is
// its chain j.
template <int G>
HEADGATE_INLINE float add_tile(const RowTile& tile, const TokenPart& x, int n, float total) {
  const int groups = n * 64 / G;
  __m128 sum = _mm_setzero_ps();
  for (int i = 0; i < groups; i += 4) {
    const auto mask = static_cast<__mmask8>(_bzhi_u32(15, static_cast<unsigned>(groups - i)));
    sum = _mm_fmadd_ps(_mm_load_ps(tile.bias + i), _mm_maskz_loadu_ps(mask, x.sums + i), sum);
  }
  for (int i = 0; i < n; i += 4) {
    const __m512i dot = four_dots(tile.codes + 64 * i, x.q + 64 * i);
    const __m256i low = _mm512_castsi512_si256(dot), high = _mm512_extracti64x4_epi64(dot, 1);
    const __m128 scale = _mm_loadu_ps(x.scales + i);
    const auto add = [&](__m128i whole, const float* row_scales) {
      const __m128 factor = _mm_mul_ps(_mm_load_ps(row_scales + i), scale);
      sum = _mm_fmadd_ps(_mm_cvtepi32_ps(whole), factor, sum);
    };
    if constexpr (G == 32) {
      add(add_halves(low), tile.scale[0]);
      add(add_halves(high), tile.scale[1]);
    } else {
      add(add_halves(_mm256_add_epi32(low, high)), tile.scale[0]);
    }
  }
  alignas(16) float chains[4];
  _mm_store_ps(chains, sum);
  return total + chains[0] + chains[1] + chains[2] + chains[3];
}

// Rows [begin, end) times all tokens, of which there should be few.
template <int P, int G>
void few_tokens(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                float* y, int64_t ldy) {
  const int64_t blocks = padded_cols<G>(w.cols) / 64;
  RowTile tile;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < blocks; first += kTile) {
      const int n = blocks_in_tile(first, blocks);
      load_tile<P, G>(w, row, first, n, 0.0f, tile);
      for (int64_t t = 0; t < x.tokens; ++t) {
        float& sum = y[t * ldy + row];
        const TokenPart part = {x.q + t * x.padded + first * 64,
                                x.scales + t * (x.padded / 64) + first,
                                x.sums + t * (x.padded / G) + first * 64 / G};
        const float before = first == 0 ? 0.0f : sum;
        if (n % 4 == 0) {
          sum = add_tile<G>(tile, part, n, before);
        } else {
          const PaddedPart<G> padded(part, n);
          sum = add_tile<G>(tile, {padded.q, padded.scales, padded.sums}, (n + 3) / 4 * 4, before);
        }
      }
    }
  }
}

}  // namespace
}  // namespace headgate::kernels
