#define HEADGATE_QUANTIZE_LANES 8
#include "kernels/quantize_kernels.inl"

namespace headgate::kernels {
extern const QuantizeGroups kQuantizeGroups_avx2;
const QuantizeGroups kQuantizeGroups_avx2 = quantize_groups;
}  // namespace headgate::kernels
