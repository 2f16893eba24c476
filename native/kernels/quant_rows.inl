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
//
// One row times one token and a tile of rows times tokens add the same numbers in
// the same order, so a token's result does not depend on its company.
#include "kernels/quant_tile.inl"

namespace headgate::kernels {
namespace {

constexpr int kChunk = 32;  // tokens whose accumulators are live at a time

// Adds one tile of R rows times T tokens, from `token` on.
template <int P, int G, int R, int T>
HEADGATE_INLINE void tile_product(const RowTile* tiles, const QuantActivations& x, int64_t token,
                                  int64_t first, int n, typename V::F (&sum)[R][T]) {
  constexpr int S = G == 32 ? 2 : 1;
  constexpr int kGroups = kTile * 64 / G;
  const int groups = n * 64 / G;
  alignas(64) float factor[R][T][S][kTile];
  const int8_t* q[T];
  HEADGATE_UNROLL
  for (int t = 0; t < T; ++t) {
    q[t] = x.q + (token + t) * x.padded + first * 64;
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

// One row at a time reads the planes as a few sequential streams, which is what counts
// for a single token; two rows share the loads of activations.
template <int P, int G>
void quant_rows_of(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                   float* y, int64_t ldy) {
  for (int64_t token = 0; token < x.tokens; token += kChunk) {
    const int count = static_cast<int>(x.tokens - token < kChunk ? x.tokens - token : kChunk);
    int64_t row = begin;
    if (count > 1) {
      for (; row + 2 <= end; row += 2) rows_product<P, G, 2>(w, x, row, token, count, y, ldy);
    }
    for (; row < end; ++row) {
      for (int t = 0; t < count; ++t) {
        y[(token + t) * ldy + row] = row_product<P, G>(w, x, row, token + t);
      }
    }
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
