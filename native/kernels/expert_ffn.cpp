#include "kernels/expert_ffn.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace headgate::kernels {
namespace {

// Buffers of the Scratch. kInput and kHidden take ActivationBuffer::kSlots each.
enum Slot : size_t { kInput = 0, kHidden = 4, kGate = 8, kUp, kGathered, kDown, kFirst, kSource };

// An expert that has work to do: pairs [first, first + count).
struct Expert {
  const std::byte* record;
  int64_t first, count;
};

// One call. The pairs are in the order of their experts, so those of an expert are
// neighbours and form the rows of its input, hidden and output matrices.
struct Call {
  ThreadPool& pool;
  const QuantKernels& kernels;
  const ExpertLayout& layout;
  std::span<const int32_t> token_of, out_row;
  const float* x;
  float* y;
  bool integer;  // activations in int8

  std::vector<Expert> experts = {};
  int32_t* source = nullptr;  // the first pair with the same token, for each pair
  ActivationBuffer input = {}, hidden = {};
  float* gathered = nullptr;  // [pairs, hidden]: input in float32, where it must be copied
  float* gate = nullptr;      // [pairs, inter]: later the product of gate and up
  float* up = nullptr;        // [pairs, inter]
  float* down = nullptr;      // [pairs, hidden]

  int64_t pairs() const { return static_cast<int64_t>(token_of.size()); }
  const float* row_of(int64_t pair) const { return x + token_of[pair] * layout.hidden; }

  void reserve(Scratch& scratch, int64_t tokens);
  void gather_input();
  void gate_and_up();
  void activate();
  void project_down();
};

// Before anything is computed, so that a failure leaves y as it was.
void Call::reserve(Scratch& scratch, int64_t tokens) {
  gate = scratch.get<float>(kGate, pairs() * layout.inter);
  up = scratch.get<float>(kUp, pairs() * layout.inter);
  down = scratch.get<float>(kDown, pairs() * layout.hidden);
  source = scratch.get<int32_t>(kSource, pairs());
  auto* first = scratch.get<int32_t>(kFirst, tokens);
  std::fill_n(first, tokens, -1);
  for (int64_t p = 0; p < pairs(); ++p) {
    int32_t& pair = first[token_of[p]];
    if (pair < 0) pair = static_cast<int32_t>(p);
    source[p] = pair;
  }
  if (integer) {
    input = ActivationBuffer::in(scratch, kernels, kInput, pairs(), layout.hidden, layout.group);
    hidden = ActivationBuffer::in(scratch, kernels, kHidden, pairs(), layout.inter, layout.group);
  } else {
    gathered = scratch.get<float>(kGathered, pairs() * layout.hidden);
  }
}

// Quantises every distinct token once. An expert with a single pair, as in decoding,
// reads its token where it is; otherwise rows are copied next to each other.
void Call::gather_input() {
  const int64_t grain = std::max<int64_t>(1, (int64_t{16} << 10) / layout.hidden);
  if (integer) {
    pool.parallel_for(pairs(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        if (source[p] == p) input.quantize(kernels, row_of(p), layout.hidden, p);
      }
    });
  }
  const auto shared = [](const Expert& e) { return e.count > 1; };
  if (std::none_of(experts.begin(), experts.end(), shared)) return;
  pool.parallel_for(static_cast<int64_t>(experts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!shared(experts[i])) continue;
      for (int64_t p = experts[i].first; p < experts[i].first + experts[i].count; ++p) {
        if (!integer) {
          std::copy_n(row_of(p), layout.hidden, gathered + p * layout.hidden);
        } else if (source[p] != p) {
          input.copy_row(source[p], p);
        }
      }
      if (integer) input.pack(kernels, experts[i].first, experts[i].count);
    }
  });
}

// Calls body(index, from, to) for the pieces of [begin, end) that lie in one of the
// segments of `length` each.
template <class Body>
void in_segments(int64_t begin, int64_t end, int64_t length, Body body) {
  while (begin < end) {
    const int64_t index = begin / length;
    const int64_t from = begin - index * length;
    const int64_t to = std::min(length, from + end - begin);
    body(index, from, to);
    begin += to - from;
  }
}

// One loop over the rows of both matrices of all experts.
void Call::gate_and_up() {
  const auto& l = layout;
  const auto n = static_cast<int64_t>(experts.size());
  const Matrix shape = expert_matrix(l, l.gate, l.inter, l.hidden, experts[0].record);
  const int64_t rows = n * 2 * l.inter;
  const int64_t grain = row_grain(pool, kernels, rows, row_bytes(shape), (pairs() + n - 1) / n);
  pool.parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    in_segments(begin, end, l.inter, [&](int64_t index, int64_t from, int64_t to) {
      const Expert& e = experts[index / 2];
      const bool is_up = index % 2 != 0;
      const Matrix w = expert_matrix(l, is_up ? l.up : l.gate, l.inter, l.hidden, e.record);
      float* out = (is_up ? up : gate) + e.first * l.inter;
      const bool single = e.count == 1;
      if (integer) {
        const auto rows = input.rows(single ? source[e.first] : e.first, e.count);
        kernels.quant_rows(*w.quant(), rows, from, to, out, l.inter);
        return;
      }
      const float* in = single ? row_of(e.first) : gathered + e.first * l.hidden;
      if (const auto* quant = w.quant()) {
        kernels.exact_rows(*quant, in, e.count, l.hidden, from, to, out, l.inter);
      } else {
        kernels.dense_rows(*w.dense(), in, e.count, l.hidden, from, to, out, l.inter);
      }
    });
  });
}

void Call::activate() {
  const int64_t grain = std::max<int64_t>(1, 512 / layout.inter);
  pool.parallel_for(pairs(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* row = gate + p * layout.inter;
      silu_mul(row, up + p * layout.inter, row, layout.inter);
      if (integer) hidden.quantize(kernels, row, layout.inter, p);
    }
  });
  if (!hidden.packed) return;
  pool.parallel_for(static_cast<int64_t>(experts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (experts[i].count > 1) hidden.pack(kernels, experts[i].first, experts[i].count);
    }
  });
}

void Call::project_down() {
  const auto& l = layout;
  const auto n = static_cast<int64_t>(experts.size());
  const Matrix shape = expert_matrix(l, l.down, l.hidden, l.inter, experts[0].record);
  const int64_t rows = n * l.hidden;
  const int64_t grain = row_grain(pool, kernels, rows, row_bytes(shape), (pairs() + n - 1) / n);
  pool.parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    in_segments(begin, end, l.hidden, [&](int64_t index, int64_t from, int64_t to) {
      const Expert& e = experts[index];
      const Matrix w = expert_matrix(l, l.down, l.hidden, l.inter, e.record);
      const bool single = e.count == 1;
      float* out = single ? y + out_row[e.first] * l.hidden : down + e.first * l.hidden;
      const float* in = gate + e.first * l.inter;
      if (integer) {
        kernels.quant_rows(*w.quant(), hidden.rows(e.first, e.count), from, to, out, l.hidden);
      } else if (const auto* quant = w.quant()) {
        kernels.exact_rows(*quant, in, e.count, l.inter, from, to, out, l.hidden);
      } else {
        kernels.dense_rows(*w.dense(), in, e.count, l.inter, from, to, out, l.hidden);
      }
      if (single) return;
      for (int64_t p = e.first; p < e.first + e.count; ++p) {
        std::copy(down + p * l.hidden + from, down + p * l.hidden + to,
                  y + out_row[p] * l.hidden + from);
      }
    });
  });
}

// Four floats, which every supported machine has in registers without special flags.
using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));

Float4 exp4(Float4 v) {
  // exp(v) = 2^n exp(r) with |r| <= log(2) / 2; ln 2 in two parts, so that r is
  // exact to float precision. The clamp keeps 2^n a normal number.
  v = v > 87.0f ? Float4{} + 87.0f : v;
  v = v < -87.0f ? Float4{} - 87.0f : v;
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, in the low bits
  const Float4 shifted = v * 0x1.715476p+0f + kRound;
  const Float4 n = shifted - kRound;
  const Float4 r = (v - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  Float4 p = Float4{} + 1.0f / 5040;  // the Taylor series to r^7: error below 1e-8
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Int4 exponent = __builtin_convertvector(n, Int4);
  return p * reinterpret_cast<Float4>((exponent + 127) << 23);
}

Float4 silu_mul4(const float* gate, const float* up) {
  Float4 g, u;
  std::memcpy(&g, gate, sizeof g);
  std::memcpy(&u, up, sizeof u);
  return g / (1.0f + exp4(-g)) * u;
}

}  // namespace

Matrix expert_matrix(const ExpertLayout& layout, const MatrixOffsets& at, int64_t rows,
                     int64_t cols, const std::byte* record) {
  if (layout.kind != ExpertKind::quant) {
    const auto type = layout.kind == ExpertKind::bf16 ? DenseType::bf16 : DenseType::f16;
    return DenseMatrix{record + at.data, rows, cols, type};
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(record);
  QuantMatrix w;
  w.scales = reinterpret_cast<const uint16_t*>(bytes + at.scales);
  w.biases = reinterpret_cast<const uint16_t*>(bytes + at.biases);
  w.q2 = bytes + at.q2;
  if (layout.used_bits >= 3) w.q3 = bytes + at.q3;
  if (layout.used_bits >= 4) w.q4 = bytes + at.q4;
  if (layout.used_bits >= 8) w.q8 = bytes + at.q8;
  w.rows = rows;
  w.cols = cols;
  w.group = layout.group;
  w.stored_bits = layout.stored_bits;
  w.used_bits = layout.used_bits;
  w.half = layout.half;
  return w;
}

void expert_ffn(ThreadPool& pool, const QuantKernels& kernels, Scratch& scratch,
                const ExpertLayout& layout, std::span<const std::byte* const> records,
                std::span<const int32_t> splits, std::span<const int32_t> token_of,
                std::span<const int32_t> out_row, const float* x, int64_t tokens, float* y,
                bool exact) {
  if (token_of.empty()) return;
  const bool integer = layout.kind == ExpertKind::quant && !exact;
  Call call{pool, kernels, layout, token_of, out_row, x, y, integer};
  for (size_t n = 0; n < records.size(); ++n) {
    const int64_t count = int64_t{splits[n + 1]} - splits[n];
    if (count > 0) call.experts.push_back({records[n], splits[n], count});
  }
  call.reserve(scratch, tokens);
  call.gather_input();
  call.gate_and_up();
  call.activate();
  call.project_down();
}

void silu_mul(const float* gate, const float* up, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const Float4 v = silu_mul4(gate + i, up + i);
    std::memcpy(out + i, &v, sizeof v);
  }
  if (i == n) return;
  float g[4] = {}, u[4] = {};
  const size_t rest = static_cast<size_t>(n - i) * sizeof(float);
  std::memcpy(g, gate + i, rest);
  std::memcpy(u, up + i, rest);
  const Float4 v = silu_mul4(g, u);
  std::memcpy(out + i, &v, rest);
}

void combine(ThreadPool& pool, const float* y, const float* weights, const float* base, float* out,
             int64_t tokens, int64_t experts, int64_t hidden) {
  constexpr int64_t kColumns = 512;  // of one token: the unit of work
  const int64_t parts = (hidden + kColumns - 1) / kColumns;
  const int64_t grain = std::max<int64_t>(1, 16 / std::max<int64_t>(experts, 1));
  pool.parallel_for(tokens * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / parts;
      const int64_t from = i % parts * kColumns;
      const int64_t n = std::min(kColumns, hidden - from);
      float sum[kColumns];
      std::copy_n(base + t * hidden + from, n, sum);
      for (int64_t k = 0; k < experts; ++k) {
        const float weight = weights[t * experts + k];
        const float* row = y + (t * experts + k) * hidden + from;
        for (int64_t c = 0; c < n; ++c) sum[c] += weight * row[c];
      }
      std::copy_n(sum, n, out + t * hidden + from);
    }
  });
}

}  // namespace headgate::kernels
