// Advanced SIMD with the dot product instructions of Armv8.2.
#include <arm_neon.h>

#include "kernels/quant_common.h"
#include "kernels/quant_isa.h"

namespace headgate::kernels {
namespace {

struct V {
  using F = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kTokens = 4;
  static constexpr int kRowsAlone = 1;
  static constexpr int kSums = 2;
  // sdot is signed times signed, so dot() subtracts 128 from 8-bit codes.
  static constexpr float code_offset(int bits) { return bits == 8 ? 128.0f : 0.0f; }

  static F zero() { return vdupq_n_f32(0); }
  static F set1(float x) { return vdupq_n_f32(x); }
  static F load(const float* p) { return vld1q_f32(p); }
  static F load_n(const float* p, int64_t n) {
    if (n >= 4) return vld1q_f32(p);
    float part[4] = {};
    for (int64_t i = 0; i < n; ++i) part[i] = p[i];
    return vld1q_f32(part);
  }
  static void store(float* p, F x) { vst1q_f32(p, x); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static float sum(F x) { return vaddvq_f32(x); }

  static F from_bf16(uint16x4_t x) { return vreinterpretq_f32_u32(vshll_n_u16(x, 16)); }
  static F from_f16(uint16x4_t x) { return vcvt_f32_f16(vreinterpret_f16_u16(x)); }
  static F bf16(const uint16_t* p) { return from_bf16(vld1_u16(p)); }
  static F f16(const uint16_t* p) { return from_f16(vld1_u16(p)); }
  static F halves_n(const uint16_t* p, int64_t n, HalfType half) {
    uint16_t part[4] = {};
    if (n < 4) {
      for (int64_t i = 0; i < n; ++i) part[i] = p[i];
      p = part;
    }
    return half == HalfType::bf16 ? bf16(p) : f16(p);
  }
  static F codes(const uint8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, sizeof four);
    const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(four));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
  }

  template <int P, class At>
  static void decode(const At& at, uint8_t* codes);
  template <int P, int S, int R, int T, class Tile, class Factor>
  static void dot(const Tile* tiles, const int8_t* const* q, const Factor& factor, int n,
                  F (&sum)[R][T]);
  static float quantize_block(const float* x, int8_t* q, int32_t* sums);
};

// `value` in every byte whose bit is set among the 16 bits at p, else 0.
inline uint8x16_t spread(const uint8_t* p, uint8_t value) {
  const uint8x16_t bit_of = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  const uint8x16_t bytes = vcombine_u8(vdup_n_u8(p[0]), vdup_n_u8(p[1]));
  return vandq_u8(vtstq_u8(bytes, bit_of), vdupq_n_u8(value));
}

template <int P, class At>
void V::decode(const At& at, uint8_t* codes) {
  constexpr int top = P - 2;
  const uint8x16_t q2 = vld1q_u8(at.q2);
  HEADGATE_UNROLL
  for (int i = 0; i < 4; ++i) {  // 16 weights each
    uint8x16_t code =
        vandq_u8(vshlq_u8(q2, vdupq_n_s8(static_cast<int8_t>(-2 * i))), vdupq_n_u8(3));
    code = vshlq_n_u8(code, top);
    if constexpr (P >= 3) code = vorrq_u8(code, spread(at.q3 + 2 * i, 1 << (top - 1)));
    if constexpr (P >= 4) code = vorrq_u8(code, spread(at.q4 + 2 * i, 1 << (top - 2)));
    if constexpr (P == 8) {
      const uint8x16_t q8 = vld1q_u8(at.q8 + 16 * (i % 2));
      code = vorrq_u8(code, i < 2 ? vandq_u8(q8, vdupq_n_u8(15)) : vshrq_n_u8(q8, 4));
    }
    vst1q_u8(codes + 16 * i, code);
  }
}

template <int P>
inline int8x16_t signed_codes(const uint8_t* codes) {
  const uint8x16_t code = vld1q_u8(codes);
  // Flipping the top bit subtracts 128.
  return vreinterpretq_s8_u8(P == 8 ? veorq_u8(code, vdupq_n_u8(0x80)) : code);
}

// See AVX-512's.
template <int P, int S, int R, int T, class Tile, class Factor>
inline void V::dot(const Tile* tiles, const int8_t* const* q, const Factor& factor, int n,
                   F (&sum)[R][T]) {
  for (int i = 0; i < n; ++i) {
    int8x16_t code[R][4];
    HEADGATE_UNROLL
    for (int r = 0; r < R; ++r) {
      HEADGATE_UNROLL
      for (int j = 0; j < 4; ++j) code[r][j] = signed_codes<P>(tiles[r].codes + i * 64 + j * 16);
    }
    HEADGATE_UNROLL
    for (int t = 0; t < T; ++t) {
      const int8_t* x = q[t] + i * 64;
      const int8x16_t x0 = vld1q_s8(x), x1 = vld1q_s8(x + 16);
      const int8x16_t x2 = vld1q_s8(x + 32), x3 = vld1q_s8(x + 48);
      HEADGATE_UNROLL
      for (int r = 0; r < R; ++r) {
        const int32x4_t dot0 = vdotq_s32(vdotq_s32(vdupq_n_s32(0), code[r][0], x0), code[r][1], x1);
        const int32x4_t start = S == 1 ? dot0 : vdupq_n_s32(0);
        const int32x4_t dot1 = vdotq_s32(vdotq_s32(start, code[r][2], x2), code[r][3], x3);
        if constexpr (S == 2) {
          sum[r][t] = vfmaq_n_f32(sum[r][t], vcvtq_f32_s32(dot0), factor[r][t][0][i]);
        }
        sum[r][t] = vfmaq_n_f32(sum[r][t], vcvtq_f32_s32(dot1), factor[r][t][S - 1][i]);
      }
    }
  }
}

float V::quantize_block(const float* x, int8_t* q, int32_t* sums) {
  uint32x4_t largest = vdupq_n_u32(0);
  for (int i = 0; i < 64; i += 4) {
    largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
  }
  const BlockScale scale = block_scale(vmaxvq_u32(largest));
  for (int half = 0; half < 2; ++half) {
    int32x4_t sum = vdupq_n_s32(0);
    for (int i = half * 32; i < half * 32 + 32; i += 8) {
      // NaN converts to 0, so a block that is not finite becomes 0 as well.
      const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), scale.inverse));
      const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), scale.inverse));
      vst1_s8(q + i, vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b))));
      sum = vaddq_s32(sum, vaddq_s32(a, b));
    }
    sums[half] = vaddvq_s32(sum);
  }
  return scale.scale;
}

}  // namespace
}  // namespace headgate::kernels

#include "kernels/dense_rows.inl"

namespace headgate::kernels {

constexpr QuantKernels kQuantNeon = {quantize, quant_rows, exact_rows, dense_rows};

}  // namespace headgate::kernels
