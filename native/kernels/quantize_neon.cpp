#define HEADGATE_QUANTIZE_LANES 4
#include "kernels/quantize_kernels.inl"

namespace headgate::kernels {
extern const QuantizeGroups kQuantizeGroups_neon;
const QuantizeGroups kQuantizeGroups_neon = quantize_groups;
}  // namespace headgate::kernels
