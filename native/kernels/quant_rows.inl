// Row loops that the vector instruction sets share. A file that defines the
// primitives `struct V` of one instruction set includes this once, after them.
// Everything lies in an unnamed namespace: the same template compiled with other
// instruction-set flags must never be merged with it by the linker.
//
// V provides
//   F, kLanes            a vector of floats and its length: 4, 8 or 16
//   kTokens              tokens per register tile
//   code_offset(P)       what dot() subtracts from codes of P bits
//   zero, set1, load, load_n, halves_n, store, mul, fma, sum
//                        load_n and halves_n read n <= kLanes values (none if n <= 0)
//                        and fill up with zeros
//   decode<P>(planes, codes)   one block of 64 codes, in order
//   dot<P, S, R, T>(...)       see AVX-512's
//   quantize_block(x, q, sums) 64 values -> int8, their scale, sums of the halves
//   kRowsAlone           rows of a single token that are multiplied together, decoded in
//                        registers by dot_planes; 1 for decoding to memory first
//
// One row times one token and a tile of rows times tokens add the same numbers in
// the same order, so a token's result does not depend on its company.
#include "kernels/quant_tile.inl"

namespace headgate::kernels {
namespace {

constexpr int kChunk = 32;  // tokens whose accumulators are live at a time

// Adds the biases of one tile of R rows times T tokens, from `token` on, and leaves what
// each block's dot product is to be multiplied by.
template <int G, int R, int T, class Tile, class Factor>
HEADGATE_INLINE void tile_factors(const Tile* tiles, const QuantActivations& x, int64_t token,
                                  int64_t first, int n, Factor& factor,
                                  typename V::F (&sum)[R][T]) {
  constexpr int S = G == 32 ? 2 : 1;
  constexpr int kGroups = kTile * 64 / G;
  const int groups = n * 64 / G;
  HEADGATE_UNROLL
  for (int t = 0; t < T; ++t) {
    const float* scales = x.scales + (token + t) * (x.padded / 64) + first;
    const float* sums = x.sums + (token + t) * (x.padded / G) + first * 64 / G;
    for (int i = 0; i < kGroups; i += V::kLanes) {
      const auto part = V::load_n(sums + i, groups - i);
      HEADGATE_UNROLL
      for (int r = 0; r < R; ++r) sum[r][t] = V::fma(V::load(tiles[r].bias + i), part, sum[r][t]);
    }
    for (int i = 0; i < kTile; i += V::kLanes) {
      const auto scale = V::load_n(scales + i, n - i);
      HEADGATE_UNROLL
      for (int r = 0; r < R; ++r) {
        for (int s = 0; s < S; ++s) {
          V::store(&factor[r][t][s][i], V::mul(V::load(&tiles[r].scale[s][i]), scale));
        }
      }
    }
  }
}

template <int G>
constexpr int kScalesPerBlock = G == 32 ? 2 : 1;

// Adds one tile of R rows times T tokens, from `token` on.
template <int P, int G, int R, int T>
HEADGATE_INLINE void tile_product(const RowTile* tiles, const QuantActivations& x, int64_t token,
                                  int64_t first, int n, typename V::F (&sum)[R][T]) {
  constexpr int S = kScalesPerBlock<G>;
  alignas(64) float factor[R][T][S][kTile];
  tile_factors<G, R, T>(tiles, x, token, first, n, factor, sum);
  const int8_t* q[T];
  HEADGATE_UNROLL
  for (int t = 0; t < T; ++t) q[t] = x.q + (token + t) * x.padded + first * 64;
  V::template dot<P, S, R, T>(tiles, q, factor, n, sum);
}

template <int P, int G>
float row_product(const QuantMatrix& w, const QuantActivations& x, int64_t row, int64_t token) {
  const int64_t blocks = padded_cols<G>(w.cols) / 64;
  RowTile tile;
  typename V::F sum[1][1] = {{V::zero()}};
  for (int64_t first = 0; first < blocks; first += kTile) {
    const int n = blocks_in_tile(first, blocks);
    load_tile<P, G>(w, row, first, n, V::code_offset(P), tile);
    tile_product<P, G, 1, 1>(&tile, x, token, first, n, sum);
  }
  return V::sum(sum[0][0]);
}

constexpr int kFetch = 4;                 // blocks whose successors are fetched at once
constexpr int64_t kAheadBytes = 6 << 10;  // what a core reads while memory answers, and more

// Fetches kFetch blocks of one plane, `Bytes` each, that lie `ahead` blocks further on.
template <int Bytes>
HEADGATE_INLINE void fetch_plane(const uint8_t* plane, int64_t ahead) {
  const auto at = reinterpret_cast<uintptr_t>(plane) + static_cast<uintptr_t>(ahead * Bytes);
  HEADGATE_UNROLL
  for (int i = 0; i < kFetch * Bytes; i += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(at + static_cast<uintptr_t>(i)));
  }
}

// The same for all planes; `even` says whether the narrow ones begin a new cache line.
template <int P>
HEADGATE_INLINE void fetch_planes(const Planes& at, int64_t ahead, bool even) {
  fetch_plane<16>(at.q2, ahead);
  if (P >= 3 && even) fetch_plane<8>(at.q3, ahead);
  if (P >= 4 && even) fetch_plane<8>(at.q4, ahead);
  if constexpr (P == 8) fetch_plane<32>(at.q8, ahead);
}

// R rows from `row` on times one token. Each row has a sum of its own, so that no addition
// waits for the one before, and no codes go through memory. (Isa is V: an instruction set
// without dot_planes never gets here.)
template <int P, int G, int R, class Isa = V>
void rows_alone(const QuantMatrix& w, const QuantActivations& x, int64_t row, int64_t token,
                float* y) {
  constexpr int S = kScalesPerBlock<G>;
  const int64_t blocks = padded_cols<G>(w.cols) / 64;
  // Whole groups of rows: the rows between are being read right now.
  const int64_t group_bytes = R * blocks * (8 * P + 256 / G);
  const int64_t ahead = (kAheadBytes / group_bytes + 1) * R * blocks;
  RowScales scales[R];
  alignas(64) float factor[R][1][S][kTile];
  typename V::F sum[R][1];
  for (int r = 0; r < R; ++r) sum[r][0] = V::zero();
  for (int64_t first = 0; first < blocks; first += kTile) {
    const int n = blocks_in_tile(first, blocks);
    for (int r = 0; r < R; ++r) {
      load_scales<G>(w, row + r, first, n, V::code_offset(P), scales[r]);
      const int64_t group = ((row + r) * blocks + first + ahead) * 64 / G;
      __builtin_prefetch(w.scales + group);
      __builtin_prefetch(w.biases + group);
    }
    tile_factors<G, R, 1>(scales, x, token, first, n, factor, sum);
    const int8_t* q = x.q + token * x.padded + first * 64;
    // A little at a time: a tile's lines all at once are more than a core can wait for, and
    // memory would rest while they are multiplied.
    for (int i = 0; i < n; i += kFetch) {
      const int part = n - i < kFetch ? n - i : kFetch;
      for (int r = 0; r < R; ++r) {
        fetch_planes<P>(planes_at<P>(w, (row + r) * blocks + first + i), ahead, i % 8 == 0);
      }
      const Planes at = planes_at<P>(w, row * blocks + first + i);
      Isa::template dot_planes<P, S, R>(at, blocks, q + i * 64, factor, i, part, sum);
    }
  }
  for (int r = 0; r < R; ++r) y[row + r] = V::sum(sum[r][0]);
}

// The sums of R rows and some tokens, in memory between tiles.
template <int R>
struct TileSums {
  alignas(64) float lanes[R][kChunk][V::kLanes];

  template <int P, int G, int T>
  void add(const RowTile* tiles, const QuantActivations& x, int64_t token, int64_t first, int n,
           int slot) {
    typename V::F sum[R][T];
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) sum[r][t] = V::load(lanes[r][slot + t]);
    }
    tile_product<P, G, R, T>(tiles, x, token + slot, first, n, sum);
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) V::store(lanes[r][slot + t], sum[r][t]);
    }
  }
};

// R rows from `row` on times `count` <= kChunk tokens from `token` on.
template <int P, int G, int R>
void rows_product(const QuantMatrix& w, const QuantActivations& x, int64_t row, int64_t token,
                  int count, float* y, int64_t ldy) {
  const int64_t blocks = padded_cols<G>(w.cols) / 64;
  TileSums<R> sums;
  RowTile tiles[R];
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < count; ++t) V::store(sums.lanes[r][t], V::zero());
  }
  for (int64_t first = 0; first < blocks; first += kTile) {
    const int n = blocks_in_tile(first, blocks);
    for (int r = 0; r < R; ++r) {
      load_tile<P, G>(w, row + r, first, n, V::code_offset(P), tiles[r]);
    }
    int t = 0;
    for (; t + V::kTokens <= count; t += V::kTokens) {
      sums.template add<P, G, V::kTokens>(tiles, x, token, first, n, t);
    }
    for (; t < count; ++t) sums.template add<P, G, 1>(tiles, x, token, first, n, t);
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < count; ++t)
      y[(token + t) * ldy + row + r] = V::sum(V::load(sums.lanes[r][t]));
  }
}

// Rows [begin, end) times tokens [token, token + count), count <= kChunk.
template <int P, int G>
void chunk_product(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                   int64_t token, int count, float* y, int64_t ldy) {
  int64_t row = begin;
  if (count > 1) {
    for (; row + 2 <= end; row += 2) rows_product<P, G, 2>(w, x, row, token, count, y, ldy);
  } else if constexpr (V::kRowsAlone > 1) {
    constexpr int R = V::kRowsAlone;
    for (; row + R <= end; row += R) rows_alone<P, G, R>(w, x, row, token, y + token * ldy);
    for (; row < end; ++row) rows_alone<P, G, 1>(w, x, row, token, y + token * ldy);
  }
  for (; row < end; ++row) {
    for (int t = 0; t < count; ++t) {
      y[(token + t) * ldy + row] = row_product<P, G>(w, x, row, token + t);
    }
  }
}

template <int P, int G>
void quant_rows_of(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                   float* y, int64_t ldy) {
  for (int64_t token = 0; token < x.tokens; token += kChunk) {
    const int count = static_cast<int>(x.tokens - token < kChunk ? x.tokens - token : kChunk);
    chunk_product<P, G>(w, x, begin, end, token, count, y, ldy);
  }
}

template <int P>
void quant_rows_of(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                   float* y, int64_t ldy) {
  if (w.group == 32) return quant_rows_of<P, 32>(w, x, begin, end, y, ldy);
  if (w.group == 64) return quant_rows_of<P, 64>(w, x, begin, end, y, ldy);
  return quant_rows_of<P, 128>(w, x, begin, end, y, ldy);
}

void quant_rows(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                float* y, int64_t ldy) {
  if (w.used_bits == 2) return quant_rows_of<2>(w, x, begin, end, y, ldy);
  if (w.used_bits == 3) return quant_rows_of<3>(w, x, begin, end, y, ldy);
  if (w.used_bits == 4) return quant_rows_of<4>(w, x, begin, end, y, ldy);
  return quant_rows_of<8>(w, x, begin, end, y, ldy);
}

void quantize(const float* x, int64_t cols, int64_t padded, int32_t group, int8_t* q, float* scales,
              float* sums) {
  for (int64_t block = 0; block < padded / 64; ++block) {
    const int64_t left = cols - block * 64;
    const float* source = x + block * 64;
    alignas(64) float part[64];
    if (left < 64) {
      for (int i = 0; i < 64; ++i) part[i] = i < left ? x[block * 64 + i] : 0.0f;
      source = part;
    }
    int32_t half[2];
    const float scale = V::quantize_block(source, q + block * 64, half);
    scales[block] = scale;
    const float sum = scale * static_cast<float>(half[0] + half[1]);
    if (group == 32) {
      sums[2 * block] = scale * static_cast<float>(half[0]);
      sums[2 * block + 1] = scale * static_cast<float>(half[1]);
    } else if (group == 64) {
      sums[block] = sum;
    } else {
      sums[block / 2] = block % 2 == 0 ? sum : sums[block / 2] + sum;
    }
  }
}

}  // namespace
}  // namespace headgate::kernels
