#define HEADGATE_FLOAT_LANES 4      // floats in a vector
#define HEADGATE_FLOAT_TILE_ROWS 6  // matrix products keep a tile of this many rows
#define HEADGATE_FLOAT_TILE_VECS 4  // times this many vectors in registers
#include "kernels/float_kernels.inl"

namespace headgate::kernels {
extern const FloatKernels kFloatKernels_neon;
const FloatKernels kFloatKernels_neon = kTable;
}  // namespace headgate::kernels
