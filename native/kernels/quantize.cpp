#include "kernels/quantize.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/quantize_kernels.h"

namespace headgate::kernels {

extern const QuantizeGroups kQuantizeGroups_scalar;
extern const QuantizeGroups kQuantizeGroups_avx2;
extern const QuantizeGroups kQuantizeGroups_avx512;
extern const QuantizeGroups kQuantizeGroups_neon;

QuantizeGroups quantize_kernel(Isa isa) {
  if (!supports(isa)) {
    throw std::invalid_argument(std::string("this machine cannot run ") + name(isa) + " kernels");
  }
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return kQuantizeGroups_avx2;
    case Isa::avx512:
    case Isa::amx:
      return kQuantizeGroups_avx512;
#elif defined(__aarch64__)
    case Isa::neon:
      return kQuantizeGroups_neon;
#endif
    default:
      return kQuantizeGroups_scalar;
  }
}

void quantize_groups(ThreadPool& pool, const float* weights, int64_t groups, int size, int bits,
                     bool nested, uint8_t* codes, uint16_t* scales, uint16_t* biases, Isa isa) {
  const QuantizeGroups quantize = quantize_kernel(isa);
  pool.parallel_for(groups, 256, [&](int64_t begin, int64_t end) {
    quantize(weights + begin * size, end - begin, size, bits, nested, codes + begin * size,
             scales + begin, biases + begin);
  });
}

namespace {

// The bits at `shift` of eight codes.
uint8_t bit_of_each(const uint8_t* codes, int shift) {
  uint64_t word;
  std::memcpy(&word, codes, 8);
  // The product moves bit 8 j to bit 56 + j.
  word = ((word >> shift) & 0x0101010101010101u) * 0x0102040810204080u;
  return static_cast<uint8_t>(word >> 56);
}

void pack_block(const uint8_t* c, int bits, uint8_t* q2, uint8_t* q3, uint8_t* q4, uint8_t* q8) {
  const int top = bits - 2;
  for (int i = 0; i < 16; ++i) {
    q2[i] = static_cast<uint8_t>((c[i] >> top) | (c[i + 16] >> top) << 2 | (c[i + 32] >> top) << 4 |
                                 (c[i + 48] >> top) << 6);
  }
  for (int i = 0; bits >= 3 && i < 8; ++i) q3[i] = bit_of_each(c + 8 * i, bits - 3);
  for (int i = 0; bits >= 4 && i < 8; ++i) q4[i] = bit_of_each(c + 8 * i, bits - 4);
  for (int i = 0; bits >= 8 && i < 32; ++i) {
    q8[i] = static_cast<uint8_t>((c[i] & 15) | (c[i + 32] & 15) << 4);
  }
}

}  // namespace

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
