// The kernel tables, one per instruction set. A build contains the scalar table
// and those of its own architecture; quant_kernels() chooses among them.
#pragma once

#include "kernels/quant.h"

namespace headgate::kernels {

extern const QuantKernels kQuantScalar;
#if defined(__x86_64__)
extern const QuantKernels kQuantAvx2;
extern const QuantKernels kQuantAvx512;
#if defined(HEADGATE_AMX)
extern const QuantKernels kQuantAmx;

// quant_amx.cpp's part of that table.
constexpr int64_t kAmxRows = 16;
void amx_quant_rows(const QuantMatrix& w, const QuantActivations& x, int64_t begin, int64_t end,
                    float* y, int64_t ldy);
void amx_pack(const QuantActivations& x, std::byte* packed);
#endif
#elif defined(__aarch64__)
extern const QuantKernels kQuantNeon;
#endif

}  // namespace headgate::kernels
