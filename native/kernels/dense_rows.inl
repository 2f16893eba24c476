// Products of float32 activations with 16-bit, float32 and dequantised weights, for
// the vector instruction sets. Like quant_rows.inl, which it includes, this belongs
// to the one file that includes it. Of V it also needs
//   kSums                accumulators per row and token
//   bf16(p), f16(p)      kLanes weights as floats
//   codes(p)             kLanes unsigned bytes as floats
#include "kernels/quant_rows.inl"

namespace headgate::kernels {
namespace {

constexpr int kStep = V::kLanes * V::kSums;  // columns per step

template <DenseType D>
struct Weights {
  using Type = uint16_t;
  static typename V::F load(const uint16_t* p) {
    return D == DenseType::bf16 ? V::bf16(p) : V::f16(p);
  }
};
template <>
struct Weights<DenseType::f32> {
  using Type = float;
  static typename V::F load(const float* p) { return V::load(p); }
};

template <int R, int T>
using Sums = typename V::F[R][T][V::kSums];

template <int R, int T>
void clear(Sums<R, T>& sum) {
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      for (int k = 0; k < V::kSums; ++k) sum[r][t][k] = V::zero();
    }
  }
}

inline float total(const typename V::F (&sum)[V::kSums]) {
  auto all = sum[0];
  for (int k = 1; k < V::kSums; ++k) all = V::fma(sum[k], V::set1(1.0f), all);
  return V::sum(all);
}

// Fetches what a single stream of weights needs 4 KiB later, once per cache line; the
// hardware alone reaches about two thirds of the speed.
inline void fetch_ahead(const void* weights, int64_t offset) {
  if (offset % 64 != 0) return;
  const auto at = reinterpret_cast<uintptr_t>(weights) + static_cast<uintptr_t>(offset) + 4096;
  __builtin_prefetch(reinterpret_cast<const void*>(at));
}

// n columns, a multiple of kStep: sum[r][t] += w[r] . x[t], lane by lane.
template <DenseType D, int R, int T>
inline void steps(const typename Weights<D>::Type* const* w, const float* const* x, int64_t n,
                  Sums<R, T>& sum) {
  constexpr int kSize = sizeof(typename Weights<D>::Type);
  for (int64_t i = 0; i < n; i += kStep) {
    if constexpr (R == 1 && T == 1) {
      for (int at = 0; at < kStep * kSize; at += 64) fetch_ahead(w[0], i * kSize + at);
    }
    HEADGATE_UNROLL
    for (int k = 0; k < V::kSums; ++k) {
      const int64_t at = i + k * V::kLanes;
      typename V::F weight[R];
      HEADGATE_UNROLL
      for (int r = 0; r < R; ++r) weight[r] = Weights<D>::load(w[r] + at);
      HEADGATE_UNROLL
      for (int t = 0; t < T; ++t) {
        const auto value = V::load(x[t] + at);
        HEADGATE_UNROLL
        for (int r = 0; r < R; ++r) sum[r][t][k] = V::fma(weight[r], value, sum[r][t][k]);
      }
    }
  }
}

// Any number of columns: the last ones go through copies filled up with zeros, so
// that nothing past the end of a row of weights or activations is read.
template <DenseType D, int R, int T>
inline void accumulate(const typename Weights<D>::Type* const* w, const float* const* x, int64_t n,
                       Sums<R, T>& sum) {
  const int64_t whole = n / kStep * kStep;
  steps<D, R, T>(w, x, whole, sum);
  const size_t rest = static_cast<size_t>(n - whole);
  if (rest == 0) return;
  alignas(64) typename Weights<D>::Type last_w[R][kStep] = {};
  alignas(64) float last_x[T][kStep] = {};
  const typename Weights<D>::Type* w_at[R];
  const float* x_at[T];
  for (int r = 0; r < R; ++r) {
    std::memcpy(last_w[r], w[r] + whole, rest * sizeof last_w[r][0]);
    w_at[r] = last_w[r];
  }
  for (int t = 0; t < T; ++t) {
    std::memcpy(last_x[t], x[t] + whole, rest * sizeof last_x[t][0]);
    x_at[t] = last_x[t];
  }
  steps<D, R, T>(w_at, x_at, kStep, sum);
}

template <DenseType D, int R, int T>
void dense_tile(const DenseMatrix& w, const float* x, int64_t ldx, int64_t row, float* y,
                int64_t ldy) {
  const auto* data = static_cast<const typename Weights<D>::Type*>(w.data);
  const typename Weights<D>::Type* w_at[R];
  const float* x_at[T];
  for (int r = 0; r < R; ++r) w_at[r] = data + (row + r) * w.cols;
  for (int t = 0; t < T; ++t) x_at[t] = x + t * ldx;
  Sums<R, T> sum;
  clear<R, T>(sum);
  accumulate<D, R, T>(w_at, x_at, w.cols, sum);
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) y[t * ldy + row + r] = total(sum[r][t]);
  }
}

// Tokens outside, rows inside: the few rows of a call stay in the cache, which the
// activations of a long prompt would not.
template <DenseType D, int T>
void dense_tokens(const DenseMatrix& w, const float* x, int64_t ldx, int64_t begin, int64_t end,
                  bool pairs, float* y, int64_t ldy) {
  int64_t row = begin;
  if (pairs) {
    for (; row + 2 <= end; row += 2) dense_tile<D, 2, T>(w, x, ldx, row, y, ldy);
  }
  for (; row < end; ++row) dense_tile<D, 1, T>(w, x, ldx, row, y, ldy);
}

template <DenseType D>
void dense_rows_of(const DenseMatrix& w, const float* x, int64_t tokens, int64_t ldx, int64_t begin,
                   int64_t end, float* y, int64_t ldy) {
  const bool pairs = tokens > 1;
  int64_t t = 0;
  for (; t + V::kTokens <= tokens; t += V::kTokens) {
    dense_tokens<D, V::kTokens>(w, x + t * ldx, ldx, begin, end, pairs, y + t * ldy, ldy);
  }
  for (; t < tokens; ++t) {
    dense_tokens<D, 1>(w, x + t * ldx, ldx, begin, end, pairs, y + t * ldy, ldy);
  }
}

void dense_rows(const DenseMatrix& w, const float* x, int64_t tokens, int64_t ldx, int64_t begin,
                int64_t end, float* y, int64_t ldy) {
  switch (w.type) {
    case DenseType::f32:
      return dense_rows_of<DenseType::f32>(w, x, tokens, ldx, begin, end, y, ldy);
    case DenseType::bf16:
      return dense_rows_of<DenseType::bf16>(w, x, tokens, ldx, begin, end, y, ldy);
    case DenseType::f16:
      return dense_rows_of<DenseType::f16>(w, x, tokens, ldx, begin, end, y, ldy);
  }
}

// The weights of a tile as floats.
template <int G>
void dequantize(const RowTile& tile, int n, float* out) {
  for (int i = 0; i < n; ++i) {
    for (int half = 0; half < 2; ++half) {
      const auto scale = V::set1(tile.scale[G == 32 ? half : 0][i]);
      const auto bias = V::set1(tile.bias[(i * 64 + half * 32) / G]);
      HEADGATE_UNROLL
      for (int j = 0; j < 32; j += V::kLanes) {
        const int at = i * 64 + half * 32 + j;
        V::store(out + at, V::fma(V::codes(tile.codes + at), scale, bias));
      }
    }
  }
}

// A tile of weights times T tokens, whose sums are kept in memory between tiles.
template <int T>
void exact_tile(const float* weights, const float* x, int64_t ldx, int64_t n,
                float (*acc)[V::kSums][V::kLanes]) {
  Sums<1, T> sum;
  const float* x_at[T];
  for (int t = 0; t < T; ++t) {
    x_at[t] = x + t * ldx;
    for (int k = 0; k < V::kSums; ++k) sum[0][t][k] = V::load(acc[t][k]);
  }
  accumulate<DenseType::f32, 1, T>(&weights, x_at, n, sum);
  for (int t = 0; t < T; ++t) {
    for (int k = 0; k < V::kSums; ++k) V::store(acc[t][k], sum[0][t][k]);
  }
}

template <int P, int G>
void exact_row(const QuantMatrix& w, const float* x, int count, int64_t ldx, int64_t row, float* y,
               int64_t ldy) {
  alignas(64) float acc[kChunk][V::kSums][V::kLanes];
  alignas(64) float weights[kTile * 64];
  RowTile tile;
  std::memset(acc, 0, sizeof acc);
  for (int64_t first = 0; first * 64 < w.cols; first += kTile) {
    const int64_t left = w.cols - first * 64;
    const int64_t cols = left < kTile * 64 ? left : kTile * 64;
    const int64_t blocks = w.padded() / 64 - first;
    const int n = static_cast<int>(blocks < kTile ? blocks : kTile);
    load_tile<P, G>(w, row, first, n, 0.0f, tile);
    dequantize<G>(tile, n, weights);
    int t = 0;
    for (; t + V::kTokens <= count; t += V::kTokens) {
      exact_tile<V::kTokens>(weights, x + t * ldx + first * 64, ldx, cols, acc + t);
    }
    for (; t < count; ++t) exact_tile<1>(weights, x + t * ldx + first * 64, ldx, cols, acc + t);
  }
  for (int t = 0; t < count; ++t) {
    typename V::F sum[V::kSums];
    for (int k = 0; k < V::kSums; ++k) sum[k] = V::load(acc[t][k]);
    y[t * ldy + row] = total(sum);
  }
}

template <int P>
void exact_row(const QuantMatrix& w, const float* x, int count, int64_t ldx, int64_t row, float* y,
               int64_t ldy) {
  if (w.group == 32) return exact_row<P, 32>(w, x, count, ldx, row, y, ldy);
  if (w.group == 64) return exact_row<P, 64>(w, x, count, ldx, row, y, ldy);
  return exact_row<P, 128>(w, x, count, ldx, row, y, ldy);
}

void exact_rows(const QuantMatrix& w, const float* x, int64_t tokens, int64_t ldx, int64_t begin,
                int64_t end, float* y, int64_t ldy) {
  const auto row_of = w.used_bits == 2   ? exact_row<2>
                      : w.used_bits == 3 ? exact_row<3>
                      : w.used_bits == 4 ? exact_row<4>
                                         : exact_row<8>;
  for (int64_t token = 0; token < tokens; token += kChunk) {
    const int count = static_cast<int>(tokens - token < kChunk ? tokens - token : kChunk);
    for (int64_t row = begin; row < end; ++row) {
      row_of(w, x + token * ldx, count, ldx, row, y + token * ldy, ldy);
    }
  }
}

}  // namespace
}  // namespace headgate::kernels
