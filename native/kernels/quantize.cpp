#include "kernels/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

// The same source for several instruction sets, chosen by the loader; built without
// contraction of products and sums, so that each gives the same bits. Sanitizers
// run before the loader's resolvers may.
#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__) && defined(__GNUC__) && !defined(__clang__)
#define HEADGATE_CLONES __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
#else
#define HEADGATE_CLONES
#endif

namespace headgate::kernels {
namespace {

constexpr float kShrinks[] = {0.5f, 0.58f, 0.66f, 0.74f, 0.82f, 0.9f, 0.98f, 1.05f};
constexpr int kRounds = 3;
constexpr float kTiny = 1e-12f;
constexpr int kMaxGroup = 128;
constexpr int kLanes = 16;  // sums run in this many lanes whatever the vector width

struct Precision {
  int step;      // codes per cell
  float weight;  // share in the objective; shares sum to one
};

struct Plan {
  Precision precisions[4];
  int count = 0;
  int top = 0;
};

Plan make_plan(int bits, bool nested) {
  Plan plan;
  plan.top = (1 << bits) - 1;
  float total = 0;
  for (int p : {2, 3, 4, 8}) {
    if (p > bits || (!nested && p != bits)) continue;
    const float weight = static_cast<float>(1 << (2 * p));
    plan.precisions[plan.count++] = {1 << (bits - p), weight};
    total += weight;
  }
  for (int i = 0; i < plan.count; ++i) plan.precisions[i].weight /= total;
  return plan;
}

inline float round_bf16(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  word = (word + 0x7FFFu + ((word >> 16) & 1u)) & 0xFFFF0000u;
  std::memcpy(&x, &word, 4);
  return x;
}

inline uint16_t bf16_bits(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return static_cast<uint16_t>(word >> 16);
}

inline float fold(const float (&lanes)[kLanes]) {
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

// Every loop below is over a whole group and vectorises; codes stay in float.
struct Group {
  alignas(64) float w[kMaxGroup];
  alignas(64) float code[kMaxGroup];
  int size;
  float mean;

  inline __attribute__((always_inline)) void assign(float s, float b, float top) {
    for (int i = 0; i < size; ++i) {
      // Adding and subtracting 1.5 * 2^23 rounds to nearest even within +-2^22,
      // which the clamp guarantees.
      float z = (w[i] - b) / s;
      z = z > 0 ? z : 0;
      z = z < top ? z : top;
      code[i] = (z + 12582912.0f) - 12582912.0f;
    }
  }

  static inline __attribute__((always_inline)) float level(float code, const Precision& p) {
    const float step = static_cast<float>(p.step);
    return static_cast<float>(static_cast<int>(code * (1.0f / step))) * step + (step - 1.0f) * 0.5f;
  }

  // Least squares over the precisions, for the codes assigned last.
  inline __attribute__((always_inline)) void fit(const Plan& plan, float& s, float& b) const {
    const float share = 1.0f / static_cast<float>(size);
    float level_mean = 0, square_mean = 0, product_mean = 0;
    for (int k = 0; k < plan.count; ++k) {
      const Precision p = plan.precisions[k];
      float levels[kLanes] = {}, squares[kLanes] = {}, products[kLanes] = {};
      for (int i = 0; i < size; i += kLanes) {
        for (int j = 0; j < kLanes; ++j) {
          const float l = level(code[i + j], p);
          levels[j] += l;
          squares[j] += l * l;
          products[j] += l * (w[i + j] - mean);
        }
      }
      level_mean += p.weight * fold(levels) * share;
      square_mean += p.weight * fold(squares) * share;
      product_mean += p.weight * fold(products) * share;
    }
    const float variance = square_mean - level_mean * level_mean;
    if (variance > 1e-4f && product_mean > 0) s = product_mean / variance;
    s = std::max(s, kTiny);
    b = mean - s * level_mean;
  }

  inline __attribute__((always_inline)) float error(const Plan& plan, float s, float b) const {
    float total = 0;
    for (int k = 0; k < plan.count; ++k) {
      const Precision p = plan.precisions[k];
      float squares[kLanes] = {};
      for (int i = 0; i < size; i += kLanes) {
        for (int j = 0; j < kLanes; ++j) {
          const float off = w[i + j] - (s * level(code[i + j], p) + b);
          squares[j] += off * off;
        }
      }
      total += p.weight * fold(squares);
    }
    return total;
  }
};

HEADGATE_CLONES
void quantize_range(const Plan& plan, const float* weights, int64_t begin, int64_t end, int size,
                    uint8_t* codes, uint16_t* scales, uint16_t* biases) {
  const float top = static_cast<float>(plan.top);
  Group g;
  g.size = size;
  for (int64_t n = begin; n < end; ++n) {
    std::memcpy(g.w, weights + n * size, static_cast<size_t>(size) * 4);
    float low = g.w[0], high = g.w[0], lanes[kLanes] = {};
    for (int i = 0; i < size; ++i) low = g.w[i] < low ? g.w[i] : low;
    for (int i = 0; i < size; ++i) high = g.w[i] > high ? g.w[i] : high;
    for (int i = 0; i < size; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) lanes[j] += g.w[i + j];
    }
    g.mean = fold(lanes) / static_cast<float>(size);
    float best = std::numeric_limits<float>::infinity();
    uint8_t* out = codes + n * size;
    // What stays if no candidate has a finite error (weights near the end of the
    // float range).
    std::memset(out, 0, static_cast<size_t>(size));
    scales[n] = biases[n] = 0;
    for (float shrink : kShrinks) {
      float s = std::max((high - low) * (shrink / top), kTiny);
      float b = (high + low) * 0.5f - s * (top * 0.5f);
      for (int round = 0; round < kRounds; ++round) {
        g.assign(s, b, top);
        g.fit(plan, s, b);
      }
      s = round_bf16(s);
      b = round_bf16(b);
      g.assign(s, b, top);
      const float error = g.error(plan, s, b);
      if (!(error < best)) continue;
      best = error;
      for (int i = 0; i < size; ++i) out[i] = static_cast<uint8_t>(g.code[i]);
      scales[n] = bf16_bits(s);
      biases[n] = bf16_bits(b);
    }
  }
}

void pack_block(const uint8_t* c, int bits, uint8_t* q2, uint8_t* q3, uint8_t* q4, uint8_t* q8) {
  const int top = bits - 2;
  for (int i = 0; i < 16; ++i) {
    q2[i] = static_cast<uint8_t>((c[i] >> top) | (c[i + 16] >> top) << 2 | (c[i + 32] >> top) << 4 |
                                 (c[i + 48] >> top) << 6);
  }
  auto bit_plane = [&](uint8_t* q, int shift) {
    for (int i = 0; i < 8; ++i) {
      unsigned byte = 0;
      for (int j = 0; j < 8; ++j) byte |= ((c[8 * i + j] >> shift) & 1u) << j;
      q[i] = static_cast<uint8_t>(byte);
    }
  };
  if (bits >= 3) bit_plane(q3, bits - 3);
  if (bits >= 4) bit_plane(q4, bits - 4);
  if (bits >= 8) {
    for (int i = 0; i < 32; ++i) q8[i] = static_cast<uint8_t>((c[i] & 15) | (c[i + 32] & 15) << 4);
  }
}

}  // namespace

void quantize_groups(ThreadPool& pool, const float* weights, int64_t groups, int size, int bits,
                     bool nested, uint8_t* codes, uint16_t* scales, uint16_t* biases) {
  const Plan plan = make_plan(bits, nested);
  pool.parallel_for(groups, 256, [&](int64_t begin, int64_t end) {
    quantize_range(plan, weights, begin, end, size, codes, scales, biases);
  });
}

void pack_planes(ThreadPool& pool, const uint8_t* codes, int64_t rows, int64_t columns, int bits,
                 uint8_t* q2, uint8_t* q3, uint8_t* q4, uint8_t* q8) {
  pool.parallel_for(rows * columns / 64, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      pack_block(codes + n * 64, bits, q2 + n * 16, q3 ? q3 + n * 8 : nullptr,
                 q4 ? q4 + n * 8 : nullptr, q8 ? q8 + n * 32 : nullptr);
    }
  });
}

}  // namespace headgate::kernels
