// The search of quantize.h, single-threaded, one function per instruction set. Plain
// data on purpose: this header is compiled with different instruction-set flags.
#pragma once

#include <cstdint>

#include "kernels/cpu.h"

namespace headgate::kernels {

// weights [groups, size] -> codes [groups, size], scales and biases [groups].
using QuantizeGroups = void (*)(const float* weights, int64_t groups, int size, int bits,
                                bool nested, uint8_t* codes, uint16_t* scales, uint16_t* biases);

// Throws std::invalid_argument if `isa` is not in this build or cannot run here.
QuantizeGroups quantize_kernel(Isa isa);

}  // namespace headgate::kernels
