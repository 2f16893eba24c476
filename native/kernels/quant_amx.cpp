// Integer products in AMX tiles. A tile product is 16 rows times up to 16 tokens over
// one block of 64 codes (or half a block, for groups of 32), in int32; AVX-512 then
// scales it and adds it to the float sums.
//
// A result is the same bits however it is computed. Its columns are taken kTile blocks at
// a time. Chain j of four starts from zero and adds bias * sum of groups j, j + 4, ...
// of these, and then scale * product of blocks j, j + 4, ..., each block's first half
// first; the four chains are added to the result in order.
#include "kernels/quant_amx_codes.inl"
#include "kernels/quant_amx_row.inl"
#include "kernels/quant_isa.h"

namespace headgate::kernels {
namespace {

constexpr int kTokenTiles = 16;  // whose sums are live at a time
constexpr int kFewTokens = 3;    // up to which rows are better taken one by one

// Halves of a block with groups of their own.
template <int G>
constexpr int kHalves = G == 32 ? 2 : 1;

// Up to 16 tokens: q is [blocks][16][n][4], that is four codes of every token after the
// next four; scales is [blocks][n] and sums [groups][n].
struct TokenTile {
  const int8_t* q;
  const float* scales;
  const float* sums;
  int n;
};

template <int G>
TokenTile token_tile(const QuantActivations& x, int64_t token) {
  const int64_t left = x.tokens - token;
  const int n = left < kLanes ? static_cast<int>(left) : kLanes;
  const std::byte* at = x.packed + token * packed_bytes(x.padded, G);
  const auto* scales = reinterpret_cast<const float*>(at + n * x.padded);
  return {reinterpret_cast<const int8_t*>(at), scales, scales + n * (x.padded / 64), n};
}

// What one call keeps on the stack. Rows and tokens that are not there leave numbers
// that nobody reads.
struct Work {
  RowTiles rows;
  alignas(64) int32_t dot[2][2][kRows * kLanes];  // [turn][half]
  alignas(64) float sum[kTokenTiles][kRows * kLanes];
};

// Tile registers, which intrinsics take as literal numbers only:
//   0  sums of 16 tokens             3  16 tokens
//   1  sums of the last 1 to 15      4  the last 1 to 15
//   2  codes
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig(int halves, int rest) {
    const auto set = [this](int r, int n, int bytes) {
      rows[r] = static_cast<uint8_t>(n);
      row_bytes[r] = static_cast<uint16_t>(bytes);
    };
    set(0, kRows, 64);
    set(1, kRows, 4 * rest);
    set(2, kRows, 64 / halves);
    set(3, 16 / halves, 64);
    set(4, 16 / halves, 4 * rest);
  }
};
static_assert(sizeof(TileConfig) == 64);

struct Tiles {
  Tiles(int halves, int rest) {
    const TileConfig config(halves, rest);
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

// dot[half][row * W + token] = codes of the row . q of the token.
template <int W, int S>
HEADGATE_INLINE void multiply(const uint8_t (&codes)[kRows][64], const int8_t* q, int n,
                              int32_t (*dot)[kRows * kLanes]) {
  HEADGATE_UNROLL
  for (int s = 0; s < S; ++s) {
    const int8_t* half = q + 32 * n * s;
    _tile_loadd(2, codes[0] + 32 * s, 64);
    if (W == kLanes && n == kLanes) {
      _tile_zero(0);
      _tile_loadd(3, half, 4 * n);
      _tile_dpbusd(0, 2, 3);
      _tile_stored(0, dot[s], 4 * W);
    } else {
      _tile_zero(1);
      _tile_loadd(4, half, 4 * n);
      _tile_dpbusd(1, 2, 4);
      _tile_stored(1, dot[s], 4 * W);
    }
  }
}

// A vector holds 16 / W rows of W tokens. These spread values of tokens and of rows
// over the lanes of vector z.
template <int W>
HEADGATE_INLINE F of_tokens(const float* p, int n) {
  if constexpr (W == 1) return V::set1(*p);
  const F x = V::load_n(p, n);
  if constexpr (W == kLanes) return x;
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_permutexvar_ps(_mm512_and_si512(lane, _mm512_set1_epi32(W - 1)), x);
}
template <int W>
HEADGATE_INLINE F of_rows(const float (&rows)[kRows], int z) {
  if constexpr (W == 1) return V::load(rows);
  if constexpr (W == kLanes) return V::set1(rows[z]);
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  constexpr int kShift = W == 2 ? 1 : W == 4 ? 2 : 3;
  const __m512i row =
      _mm512_add_epi32(_mm512_srli_epi32(lane, kShift), _mm512_set1_epi32(z * kLanes / W));
  return _mm512_permutexvar_ps(row, V::load(rows));
}

// Adds n blocks from `first` on of the rows times one tile of tokens, in lanes for W.
// `ahead` may be null.
template <int W, int G>
void add_blocks(Work& work, const TokenTile& x, int64_t first, int n, const RowsAhead* ahead,
                float* sums) {
  constexpr int S = kHalves<G>;
  asm volatile("" ::: "memory");  // GCC 12 does not know that _tile_loadd reads memory
  const int8_t* q = x.q + first * 64 * x.n;
  const float* parts = x.sums + first * 64 / G * x.n;
  const int groups = n * 64 / G;
  int turn = 0;
  multiply<W, S>(work.rows.codes[0], q, x.n, work.dot[0]);
  for (int chain = 0; chain < 4; ++chain) {
    F sum[W];
    HEADGATE_UNROLL
    for (int z = 0; z < W; ++z) sum[z] = V::zero();
    for (int g = chain; g < groups; g += 4) {
      const F part = of_tokens<W>(parts + g * x.n, x.n);
      HEADGATE_UNROLL
      for (int z = 0; z < W; ++z) sum[z] = V::fma(of_rows<W>(work.rows.bias[g], z), part, sum[z]);
    }
    for (int i = chain; i < n; i += 4) {
      const int next = i + 4 < n ? i + 4 : chain < 3 ? chain + 1 : n;
      if (next < n) {  // one block ahead of the floats
        multiply<W, S>(work.rows.codes[next], q + next * 64 * x.n, x.n, work.dot[turn ^ 1]);
      }
      if (ahead) ahead->fetch(i);
      const F scale = of_tokens<W>(x.scales + (first + i) * x.n, x.n);
      HEADGATE_UNROLL
      for (int s = 0; s < S; ++s) {
        const auto& row_scales = work.rows.scale[(i * 64 + s * 32) / G];
        HEADGATE_UNROLL
        for (int z = 0; z < W; ++z) {
          const __m512i dot = _mm512_load_si512(work.dot[turn][s] + z * kLanes);
          const F factor = V::mul(of_rows<W>(row_scales, z), scale);
          sum[z] = V::fma(_mm512_cvtepi32_ps(dot), factor, sum[z]);
        }
      }
      turn ^= 1;
    }
    HEADGATE_UNROLL
    for (int z = 0; z < W; ++z) {
      V::store(sums + z * kLanes, _mm512_add_ps(V::load(sums + z * kLanes), sum[z]));
    }
  }
}

// The narrowest lanes for n tokens.
inline int width_of(int n) { return n <= 2 ? n : n <= 4 ? 4 : n <= 8 ? 8 : kLanes; }

template <int G>
void add_blocks(Work& work, const TokenTile& x, int64_t first, int n, const RowsAhead* ahead,
                float* sums) {
  switch (width_of(x.n)) {
    case 1:
      return add_blocks<1, G>(work, x, first, n, ahead, sums);
    case 2:
      return add_blocks<2, G>(work, x, first, n, ahead, sums);
    case 4:
      return add_blocks<4, G>(work, x, first, n, ahead, sums);
    case 8:
      return add_blocks<8, G>(work, x, first, n, ahead, sums);
    default:
      return add_blocks<kLanes, G>(work, x, first, n, ahead, sums);
  }
}

// y[token * ldy + row] for the sums of one tile.
void write_sums(const float* sums, int n, int rows, float* y, int64_t ldy) {
  F v[16];
  const int width = width_of(n);
  for (int r = 0; r < kRows; ++r) v[r] = V::load_n(sums + r * width, width);
  transpose(v);
  for (int t = 0; t < n; ++t) _mm512_mask_storeu_ps(y + t * ldy, V::first(rows), v[t]);
}

// All rows [begin, end) with up to kTokenTiles tiles of tokens from `token` on.
template <int P, int G>
void tile_rows(const QuantMatrix& w, const QuantActivations& x, int64_t token, int count,
               int64_t begin, int64_t end, Work& work, float* y, int64_t ldy) {
  const int64_t blocks = padded_cols<G>(w.cols) / 64;
  for (int64_t row = begin; row < end; row += kRows) {
    const int rows = end - row < kRows ? static_cast<int>(end - row) : kRows;
    std::memset(work.sum, 0, static_cast<size_t>(count) * sizeof work.sum[0]);
    for (int64_t first = 0; first < blocks; first += kTile) {
      const int n = blocks_in_tile(first, blocks);
      load_codes<P, G>(w, row, rows, first, n, work.rows);
      const auto ahead = RowsAhead::of<P>(w, row, blocks, first, n);
      for (int i = 0; i < count; ++i) {
        add_blocks<G>(work, token_tile<G>(x, token + i * kLanes), first, n, i ? nullptr : &ahead,
                      work.sum[i]);
      }
    }
    for (int i = 0; i < count; ++i) {
      const int64_t t = token + i * kLanes;
      write_sums(work.sum[i], token_tile<G>(x, t).n, rows, y + t * ldy + row, ldy);
    }
  }
}

template <int P, int G>
void quant_rows_of(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                   float* y, int64_t ldy) {
  if (!x.packed || x.tokens <= kFewTokens) return few_tokens<P, G>(w, x, begin, end, y, ldy);
  const int rest = static_cast<int>(x.tokens % kLanes);
  const Tiles tiles(kHalves<G>, rest ? rest : kLanes);
  Work work;
  for (int64_t token = 0; token < x.tokens; token += kTokenTiles * kLanes) {
    const int64_t left = (x.tokens - token + kLanes - 1) / kLanes;
    const int count = left < kTokenTiles ? static_cast<int>(left) : kTokenTiles;
    tile_rows<P, G>(w, x, token, count, begin, end, work, y, ldy);
  }
}

template <int P>
void quant_rows_of(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                   float* y, int64_t ldy) {
  if (w.group == 32) return quant_rows_of<P, 32>(w, x, begin, end, y, ldy);
  if (w.group == 64) return quant_rows_of<P, 64>(w, x, begin, end, y, ldy);
  return quant_rows_of<P, 128>(w, x, begin, end, y, ldy);
}

// One tile of n tokens, whose rows begin at q, scales and sums.
void pack_tile(const int8_t* q, const float* scales, const float* sums, int n, int64_t padded,
               int64_t groups, std::byte* packed) {
  const int64_t blocks = padded / 64;
  auto* to = reinterpret_cast<int8_t*>(packed);
  for (int64_t i = 0; i < blocks; ++i) {
    F v[16];
    for (int t = 0; t < kLanes; ++t) {
      v[t] = t < n ? _mm512_castsi512_ps(_mm512_loadu_si512(q + t * padded + i * 64)) : V::zero();
    }
    transpose(v);
    for (int k = 0; k < 16; ++k, to += 4 * n) _mm512_mask_storeu_ps(to, V::first(n), v[k]);
  }
  auto* floats = reinterpret_cast<float*>(to);
  for (int64_t i = 0; i < blocks; ++i) {
    for (int t = 0; t < n; ++t) *floats++ = scales[t * blocks + i];
  }
  for (int64_t i = 0; i < groups; ++i) {
    for (int t = 0; t < n; ++t) *floats++ = sums[t * groups + i];
  }
}

}  // namespace

void amx_pack(const QuantActivations& x, std::byte* packed) {
  const int64_t blocks = x.padded / 64, groups = x.padded / x.group;
  for (int64_t t = 0; t < x.tokens; t += kLanes) {
    const int n = x.tokens - t < kLanes ? static_cast<int>(x.tokens - t) : kLanes;
    pack_tile(x.q + t * x.padded, x.scales + t * blocks, x.sums + t * groups, n, x.padded, groups,
              packed + t * packed_bytes(x.padded, x.group));
  }
}

void amx_quant_rows(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                    float* y, int64_t ldy) {
  if (w.used_bits == 2) return quant_rows_of<2>(w, x, begin, end, y, ldy);
  if (w.used_bits == 3) return quant_rows_of<3>(w, x, begin, end, y, ldy);
  if (w.used_bits == 4) return quant_rows_of<4>(w, x, begin, end, y, ldy);
  return quant_rows_of<8>(w, x, begin, end, y, ldy);
}

}  // namespace headgate::kernels
