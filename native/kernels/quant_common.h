// What every instruction set's quantiser agrees on. Functions are `static` so that
// each file keeps the copy compiled with its own instruction-set flags.
#pragma once

#include <cstdint>
#include <cstring>

#define HEADGATE_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define HEADGATE_UNROLL _Pragma("unroll")
#else
#define HEADGATE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace headgate::kernels {

// Scale of an int8 block, and what to multiply values with before rounding them.
// inverse == 0 says that all of q is 0: the block is zero (or too small for its
// inverse to be finite), or it has a value that is not finite, which then shows as
// a NaN scale instead of a plausible wrong result.
struct BlockScale {
  float scale, inverse;
};

// `bits` is the largest of the block's values as integers without their sign bit,
// an order in which NaN > infinity > finite.
static inline BlockScale block_scale(uint32_t bits) {
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  if (bits >= 0x7f800000u) return {__builtin_nanf(""), 0.0f};
  if (largest < 0x1p-100f) return {0.0f, 0.0f};
  return {largest / 127.0f, 127.0f / largest};
}

}  // namespace headgate::kernels
