// Search of affine scales with nested codes; src/headgate/quant/affine.py is the
// reference and says what is minimised.
#pragma once

#include <cstdint>

#include "kernels/cpu.h"
#include "kernels/thread_pool.h"

namespace headgate::kernels {

// weights [groups, size] -> codes [groups, size], scales and biases [groups] as
// bfloat16 bit patterns. bits is 2, 3, 4 or 8; size is 32, 64 or 128. With
// `nested` every precision that the codes serve counts, otherwise `bits` alone.
// Weights must be finite. The result depends neither on the number of threads nor on
// the instruction set, to the last bit. Throws std::invalid_argument if `isa` cannot
// run here.
void quantize_groups(ThreadPool& pool, const float* weights, int64_t groups, int size, int bits,
                     bool nested, uint8_t* codes, uint16_t* scales, uint16_t* biases,
                     Isa isa = best_isa());

// codes [rows, columns], columns a multiple of 64 -> the planes of quant.h that
// `bits` has; the others may be null.
void pack_planes(ThreadPool& pool, const uint8_t* codes, int64_t rows, int64_t columns, int bits,
                 uint8_t* q2, uint8_t* q3, uint8_t* q4, uint8_t* q8);

}  // namespace headgate::kernels
