// The kernel tables, one per instruction set. A build contains the scalar table
// and those of its own architecture; quant_kernels() chooses among them.
#pragma once

#include "kernels/quant.h"

namespace headgate::kernels {

extern const QuantKernels kQuantScalar;
#if defined(__x86_64__)
extern const QuantKernels kQuantAvx2;
extern const QuantKernels kQuantAvx512;
#elif defined(__aarch64__)
extern const QuantKernels kQuantNeon;
#endif

}  // namespace headgate::kernels
