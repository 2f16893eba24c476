#define HEADGATE_FLOAT_LANES 4      // floats in a vector
#define HEADGATE_FLOAT_TILE_ROWS 4  // matrix products keep a tile of this many rows
#define HEADGATE_FLOAT_TILE_VECS 2  // times this many vectors in registers
#include "kernels/float_kernels.inl"

namespace headgate::kernels {
extern const FloatKernels kFloatKernels_scalar;
const FloatKernels kFloatKernels_scalar = kTable;
}  // namespace headgate::kernels
