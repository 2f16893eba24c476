#define HEADGATE_QUANTIZE_LANES 16
#include "kernels/quantize_kernels.inl"

namespace headgate::kernels {
extern const QuantizeGroups kQuantizeGroups_avx512;
const QuantizeGroups kQuantizeGroups_avx512 = quantize_groups;
}  // namespace headgate::kernels
