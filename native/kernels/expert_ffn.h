// The feed-forward networks of the routed experts, on records as they lie in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/linear.h"

namespace headgate::kernels {

enum class ExpertKind : uint8_t { quant, bf16, f16 };

// Where the pieces of one matrix start, in bytes from the start of the record.
// Quantised experts use the first six (q3, q4 and q8 only as far as `used_bits`
// needs them), the others use `data`.
struct MatrixOffsets {
  int64_t scales = 0, biases = 0, q2 = 0, q3 = 0, q4 = 0, q8 = 0;
  int64_t data = 0;
};

// What all records of a layer have in common. A record holds gate and up
// [inter, hidden] and down [hidden, inter].
struct ExpertLayout {
  int64_t hidden = 0, inter = 0;
  ExpertKind kind = ExpertKind::quant;
  int32_t group = 64;
  int32_t stored_bits = 4, used_bits = 4;
  HalfType half = HalfType::bf16;
  MatrixOffsets gate, up, down;
  int64_t prefix_bytes = 0;  // of the record that must be present
};

// A matrix of the layout, over the record that starts at `record`.
Matrix expert_matrix(const ExpertLayout& layout, const MatrixOffsets& at, int64_t rows,
                     int64_t cols, const std::byte* record);

// For expert n and every pair p in [splits[n], splits[n + 1]), with x_p the row
// token_of[p] of x [tokens, hidden]:
//
//   y[out_row[p]] = down( silu(gate x_p) * up x_p )
//
// Rows of y [.., hidden] that no pair names are left alone. Records must be aligned to
// two bytes, out_row must not name a row twice, and nothing may alias y; indices are
// not checked here. `exact` as in linear(). A pair's result depends neither on the other
// pairs and experts of the call nor on the threads. Throws std::bad_alloc before
// anything is written.
void expert_ffn(ThreadPool& pool, const QuantKernels& kernels, Scratch& scratch,
                const ExpertLayout& layout, std::span<const std::byte* const> records,
                std::span<const int32_t> splits, std::span<const int32_t> token_of,
                std::span<const int32_t> out_row, const float* x, int64_t tokens, float* y,
                bool exact);

// out[i] = silu(gate[i]) * up[i] with silu(v) = v / (1 + exp(-v)); out may be gate.
// Relative error below 1e-6 for |v| < 87.
void silu_mul(const float* gate, const float* up, float* out, int64_t n);

// out[t] = base[t] + sum over k, in order, of weights[t, k] * y[t * experts + k];
// base and out are [tokens, hidden], y is [tokens * experts, hidden].
void combine(ThreadPool& pool, const float* y, const float* weights, const float* base, float* out,
             int64_t tokens, int64_t experts, int64_t hidden);

}  // namespace headgate::kernels
