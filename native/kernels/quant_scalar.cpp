// The reference: plain loops that any compiler takes, and what the other
// instruction sets are tested against.
#include <algorithm>
#include <cmath>

#include "kernels/quant_common.h"
#include "kernels/quant_isa.h"

namespace headgate::kernels {
namespace {

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float from_bf16(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

// IEEE 754 binary16.
float from_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float subnormal = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}

float half_value(uint16_t half, HalfType type) {
  return type == HalfType::bf16 ? from_bf16(half) : from_f16(half);
}

// The 64 codes of one block of the matrix, at the width in use.
void decode(const QuantMatrix& w, int64_t block, uint8_t* codes) {
  for (int i = 0; i < 64; ++i) {
    unsigned code = w.q2[block * 16 + i % 16] >> (2 * (i / 16)) & 3;
    if (w.used_bits >= 3) code = code << 1 | (w.q3[block * 8 + i / 8] >> (i % 8) & 1);
    if (w.used_bits >= 4) code = code << 1 | (w.q4[block * 8 + i / 8] >> (i % 8) & 1);
    if (w.used_bits == 8) code = code << 4 | (w.q8[block * 32 + i % 32] >> (4 * (i / 32)) & 15);
    codes[i] = static_cast<uint8_t>(code);
  }
}

// A group as the codes in use see it: w = scale * code + bias.
struct Group {
  float scale, bias;
};

Group group_at(const QuantMatrix& w, int64_t index) {
  const float step = static_cast<float>(1 << (w.stored_bits - w.used_bits));
  const float scale = half_value(w.scales[index], w.half);
  const float bias = half_value(w.biases[index], w.half);
  return {scale * step, bias + scale * ((step - 1) / 2)};
}

float quantize_block(const float* x, int64_t n, int8_t* q) {
  uint32_t largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, to_bits(x[i]) & 0x7fffffff);
  const BlockScale scale = block_scale(largest);
  for (int i = 0; i < 64; ++i) {
    const bool zero = i >= n || scale.inverse == 0;
    q[i] = zero ? int8_t{0} : static_cast<int8_t>(std::nearbyint(x[i] * scale.inverse));
  }
  return scale.scale;
}

void quantize(const float* x, int64_t cols, int64_t padded, int32_t group, int8_t* q, float* scales,
              float* sums) {
  std::fill_n(sums, padded / group, 0.0f);
  for (int64_t begin = 0; begin < padded; begin += 64) {
    const int64_t n = std::clamp<int64_t>(cols - begin, 0, 64);
    const float scale = quantize_block(x + begin, n, q + begin);
    scales[begin / 64] = scale;
    const int span = std::min(group, 64);
    for (int64_t part = begin; part < begin + 64; part += span) {
      int sum = 0;
      for (int i = 0; i < span; ++i) sum += q[part + i];
      sums[part / group] += scale * static_cast<float>(sum);
    }
  }
}

// One row of codes times one token: for each run of weights that share both a
// weight scale and an activation scale, an exact integer sum.
float quant_row(const QuantMatrix& w, const QuantActivations& x, int64_t row, int64_t token) {
  const int64_t padded = w.padded();
  const int8_t* q = x.q + token * padded;
  const int span = std::min(w.group, 64);
  float total = 0;
  for (int64_t begin = 0; begin < padded; begin += 64) {
    uint8_t codes[64];
    decode(w, (row * padded + begin) / 64, codes);
    for (int part = 0; part < 64; part += span) {
      int sum = 0;
      for (int i = part; i < part + span; ++i) sum += codes[i] * q[begin + i];
      const Group group = group_at(w, (row * padded + begin + part) / w.group);
      total += group.scale * x.scales[(token * padded + begin) / 64] * static_cast<float>(sum);
    }
  }
  for (int64_t g = 0; g < padded / w.group; ++g) {
    total +=
        group_at(w, row * (padded / w.group) + g).bias * x.sums[token * (padded / w.group) + g];
  }
  return total;
}

void quant_rows(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                float* y, int64_t ldy) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t t = 0; t < x.tokens; ++t) y[t * ldy + row] = quant_row(w, x, row, t);
  }
}

float exact_row(const QuantMatrix& w, const float* x, int64_t row) {
  float total = 0;
  for (int64_t begin = 0; begin < w.cols; begin += 64) {
    uint8_t codes[64];
    const int64_t at = row * w.padded() + begin;
    decode(w, at / 64, codes);
    const int64_t n = std::min<int64_t>(64, w.cols - begin);
    for (int64_t i = 0; i < n; ++i) {
      const Group group = group_at(w, (at + i) / w.group);
      total += (group.scale * static_cast<float>(codes[i]) + group.bias) * x[begin + i];
    }
  }
  return total;
}

void exact_rows(const QuantMatrix& w, const float* x, int64_t tokens, int64_t ldx, int64_t begin,
                int64_t end, float* y, int64_t ldy) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t t = 0; t < tokens; ++t) y[t * ldy + row] = exact_row(w, x + t * ldx, row);
  }
}

template <class Load>
void dense_rows_of(Load weight, int64_t cols, const float* x, int64_t tokens, int64_t ldx,
                   int64_t begin, int64_t end, float* y, int64_t ldy) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t t = 0; t < tokens; ++t) {
      float total = 0;
      for (int64_t i = 0; i < cols; ++i) total += weight(row * cols + i) * x[t * ldx + i];
      y[t * ldy + row] = total;
    }
  }
}

void dense_rows(const DenseMatrix& w, const float* x, int64_t tokens, int64_t ldx, int64_t begin,
                int64_t end, float* y, int64_t ldy) {
  const auto* full = static_cast<const float*>(w.data);
  const auto* half = static_cast<const uint16_t*>(w.data);
  auto run = [&](auto load) { dense_rows_of(load, w.cols, x, tokens, ldx, begin, end, y, ldy); };
  switch (w.type) {
    case DenseType::f32:
      return run([=](int64_t i) { return full[i]; });
    case DenseType::bf16:
      return run([=](int64_t i) { return from_bf16(half[i]); });
    case DenseType::f16:
      return run([=](int64_t i) { return from_f16(half[i]); });
  }
}

}  // namespace

constexpr QuantKernels kQuantScalar = {quantize, quant_rows, exact_rows, dense_rows};

}  // namespace headgate::kernels
