// Matrix products with the weights as they lie in a record: no dequantised copy.
//
// A quantised matrix [rows, cols] is cut along its input dimension into groups of
// `group` weights that share a scale s and a bias b. A weight is w = s * c + b
// with an unsigned code c of B bits ("stored bits"). Codes are stored by planes,
// most significant bits first, so that a prefix of the planes is a coarser code:
//
//   plane  per block of 64 weights                                   code bits
//   q2     16 bytes; byte i holds weights i, i+16, i+32, i+48         top two
//          in bits 0-1, 2-3, 4-5, 6-7
//   q3      8 bytes; bit j of the little-endian 64-bit word is weight j  next
//   q4      8 bytes; likewise                                         next
//   q8     32 bytes; byte i: weight i low nibble, i+32 high nibble    last four
//
// A matrix used at p < B bits reads code c' = c >> (B-p), and
//   w' = s * (c' * 2^(B-p) + (2^(B-p) - 1) / 2) + b          (middle of the cell)
//
// Every row is padded with zero codes to a multiple of the block, max(64, group)
// weights; activations are padded with zeros, so padding contributes nothing.
// Planes, scales and biases are row-major: [rows][blocks][bytes], [rows][groups].
//
// Nothing here allocates, throws or knows about threads, except where said.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu.h"

namespace headgate::kernels {

enum class HalfType : uint8_t { bf16, f16 };
enum class DenseType : uint8_t { f32, bf16, f16 };

struct QuantMatrix {
  const uint16_t* scales = nullptr;
  const uint16_t* biases = nullptr;
  const uint8_t* q2 = nullptr;
  const uint8_t* q3 = nullptr;  // null below 3 bits
  const uint8_t* q4 = nullptr;  // null below 4 bits
  const uint8_t* q8 = nullptr;  // null below 8 bits
  int64_t rows = 0, cols = 0;
  int32_t group = 64;       // 32, 64 or 128
  int32_t stored_bits = 4;  // B: 2, 3, 4 or 8
  int32_t used_bits = 4;    // p <= B: 2, 3, 4 or 8
  HalfType half = HalfType::bf16;

  int64_t block() const { return group > 64 ? group : 64; }
  int64_t padded() const { return (cols + block() - 1) / block() * block(); }
};

struct DenseMatrix {
  const void* data = nullptr;  // [rows, cols], row-major
  int64_t rows = 0, cols = 0;
  DenseType type = DenseType::bf16;
};

// Activations of `tokens` rows, quantised to int8 with one scale per block of 64:
// x ~ scale * q. `sums` holds, for each weight group, scale * sum(q), which the
// bias of that group multiplies. It is the sum of the *quantised* activations:
// with the true sum, rounding errors would no longer be weighted by small zero-mean
// weights but by codes.
struct QuantActivations {
  const int8_t* q = nullptr;      // [tokens][padded]
  const float* scales = nullptr;  // [tokens][padded / 64]
  const float* sums = nullptr;    // [tokens][padded / group]
  int64_t tokens = 0, padded = 0;
  int32_t group = 64;
  // The above in the order of QuantKernels::pack, or null. Without it, instruction
  // sets that pack multiply tokens one by one.
  const std::byte* packed = nullptr;
};

// Bytes of `packed` per token.
constexpr int64_t packed_bytes(int64_t padded, int32_t group) {
  return padded + (padded / 64 + padded / group) * int64_t{sizeof(float)};
}

// The kernels of one instruction set. `y` is [tokens][ldy]; rows [begin, end) of
// the matrix are written to y[t * ldy + row].
struct QuantKernels {
  // x [cols] -> q [padded], scales [padded / 64], sums [padded / group].
  void (*quantize)(const float* x, int64_t cols, int64_t padded, int32_t group, int8_t* q,
                   float* scales, float* sums);
  // Integer products; the usual path.
  void (*quant_rows)(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                     float* y, int64_t ldy);
  // float32 activations, x [tokens][ldx] with ldx >= cols (no padding needed).
  void (*exact_rows)(const QuantMatrix& w, const float* x, int64_t tokens, int64_t ldx,
                     int64_t begin, int64_t end, float* y, int64_t ldy);
  void (*dense_rows)(const DenseMatrix& w, const float* x, int64_t tokens, int64_t ldx,
                     int64_t begin, int64_t end, float* y, int64_t ldy);
  // Writes all tokens of x, tokens * packed_bytes() in all, for products of several
  // tokens. Null where quant_rows has no use for it. Tokens are packed in sixteens: 16
  // tokens of x from a multiple of 16 on give those bytes of the whole.
  void (*pack)(const QuantActivations& x, std::byte* packed) = nullptr;
  int64_t row_tile = 2;  // rows that share work: ranges are best multiples of this
};

const QuantKernels& quant_kernels(Isa isa);

}  // namespace headgate::kernels
