// Sixteen rows of a quantised matrix in the form that tiles and vectors of rows take.
#include "kernels/quant_avx512.inl"
#include "kernels/quant_isa.h"
#include "kernels/quant_tile.inl"

namespace headgate::kernels {
namespace {

using F = V::F;

constexpr int kRows = kAmxRows;
constexpr int kLanes = V::kLanes;
static_assert(kRows == kLanes);

// Up to kTile blocks of the rows. Rows that are not there leave numbers that nobody reads.
struct RowTiles {
  alignas(64) uint8_t codes[kTile][kRows][64];
  alignas(64) float scale[2 * kTile][kRows];  // of each group
  alignas(64) float bias[2 * kTile][kRows];
};

// Transposes 16 x 16 values of 32 bits.
HEADGATE_INLINE void transpose(F (&v)[16]) {
  F a[16];
  HEADGATE_UNROLL
  for (int i = 0; i < 16; i += 4) {  // 4 x 4 in every 128-bit lane
    const F low0 = _mm512_unpacklo_ps(v[i], v[i + 1]), high0 = _mm512_unpackhi_ps(v[i], v[i + 1]);
    const F low1 = _mm512_unpacklo_ps(v[i + 2], v[i + 3]);
    const F high1 = _mm512_unpackhi_ps(v[i + 2], v[i + 3]);
    a[i] = _mm512_shuffle_ps(low0, low1, 0x44);
    a[i + 1] = _mm512_shuffle_ps(low0, low1, 0xee);
    a[i + 2] = _mm512_shuffle_ps(high0, high1, 0x44);
    a[i + 3] = _mm512_shuffle_ps(high0, high1, 0xee);
  }
  HEADGATE_UNROLL
  for (int i = 0; i < 4; ++i) {  // 4 x 4 lanes
    const F even0 = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
    const F odd0 = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
    const F even1 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
    const F odd1 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
    v[i] = _mm512_shuffle_f32x4(even0, even1, 0x88);
    v[i + 4] = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(even0, even1, 0xdd);
    v[i + 12] = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
  }
}

// Scales and biases of `groups` groups of some rows, from group `base` of the first on:
// a scale and a bias are transposed as one number of 32 bits.
template <int G>
void load_scales(const QuantMatrix& w, int64_t base, int64_t row_groups, int rows, int groups,
                 RowTiles& tiles) {
  const Cell cell = cell_of(w);
  const F step = V::set1(cell.step), middle = V::set1(cell.middle);
  for (int first = 0; first < groups; first += kLanes) {
    const __mmask16 mask = V::first(groups - first);
    F pair[kRows];
    HEADGATE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = base + (r < rows ? r : 0) * row_groups + first;
      const __m512i scale = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, w.scales + at));
      const __m512i bias = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, w.biases + at));
      pair[r] = _mm512_castsi512_ps(_mm512_or_si512(scale, _mm512_slli_epi32(bias, 16)));
    }
    transpose(pair);
    if (w.half == HalfType::bf16) {
      HEADGATE_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        const __m512i both = _mm512_castps_si512(pair[i]);
        const F scale = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        const F bias = _mm512_castsi512_ps(
            _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
        V::store(tiles.scale[first + i], V::mul(scale, step));
        V::store(tiles.bias[first + i], V::fma(scale, middle, bias));
      }
    } else {
      HEADGATE_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        const __m512i both = _mm512_castps_si512(pair[i]);
        const F scale = V::from_f16(_mm512_cvtepi32_epi16(both));
        const F bias = V::from_f16(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
        V::store(tiles.scale[first + i], V::mul(scale, step));
        V::store(tiles.bias[first + i], V::fma(scale, middle, bias));
      }
    }
  }
}

// The same blocks of the next rows, to be fetched a few cache lines at a time during the
// products: asked for all at once, they would hold up decoding.
struct RowsAhead {
  struct Plane {
    const uint8_t* at;
    int64_t row_bytes, bytes;
  };
  Plane planes[4];
  int count = 0, blocks;

  template <int P>
  static RowsAhead of(const QuantMatrix& w, int64_t row, int64_t row_blocks, int64_t first, int n) {
    RowsAhead ahead;
    ahead.blocks = n;
    const Planes at = planes_at<P>(w, (row + kRows) * row_blocks + first);
    const auto add = [&](const uint8_t* plane, int bytes) {
      ahead.planes[ahead.count++] = {plane, row_blocks * bytes, int64_t{n} * bytes};
    };
    add(at.q2, 16);
    if constexpr (P >= 3) add(at.q3, 8);
    if constexpr (P >= 4) add(at.q4, 8);
    if constexpr (P == 8) add(at.q8, 32);
    return ahead;
  }

  // One share of `blocks`. Always inline: GCC drops calls that do nothing but fetch.
  HEADGATE_INLINE void fetch(int share) const {
    for (int row = share * kRows / blocks; row < (share + 1) * kRows / blocks; ++row) {
      for (int p = 0; p < count; ++p) {
        const auto start = reinterpret_cast<uintptr_t>(planes[p].at) +
                           static_cast<uintptr_t>(row * planes[p].row_bytes);
        for (int64_t i = 0; i < planes[p].bytes; i += 64) {
          __builtin_prefetch(reinterpret_cast<const void*>(start + static_cast<uintptr_t>(i)));
        }
      }
    }
  }
};

// Decodes blocks [first, first + n) of `rows` rows from `row` on.
template <int P, int G>
void load_codes(const QuantMatrix& w, int64_t row, int rows, int64_t first, int n,
                RowTiles& tiles) {
  const int64_t blocks = padded_cols<G>(w.cols) / 64, groups = padded_cols<G>(w.cols) / G;
  load_scales<G>(w, row * groups + first * 64 / G, groups, rows, n * 64 / G, tiles);
  for (int r = 0; r < rows; ++r) {
    Planes at = planes_at<P>(w, (row + r) * blocks + first);
    for (int i = 0; i < n; ++i) {
      V::decode<P>(at, tiles.codes[i][r]);
      next_block<P>(at);
    }
  }
}

}  // namespace
}  // namespace headgate::kernels
