// AVX-512, by itself and with AMX for integer products.
#include "kernels/quant_avx512.inl"

#include "kernels/dense_rows.inl"
#include "kernels/quant_isa.h"

namespace headgate::kernels {

constexpr QuantKernels kQuantAvx512 = {quantize, quant_rows, exact_rows, dense_rows};
#if defined(HEADGATE_AMX)
constexpr QuantKernels kQuantAmx = {quantize,   amx_quant_rows, exact_rows,
                                    dense_rows, amx_pack,       kAmxRows};
#endif

}  // namespace headgate::kernels
