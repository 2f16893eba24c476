// y = x W^T for several matrices that share their input, over all threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <variant>

#include "kernels/quant.h"
#include "kernels/thread_pool.h"

namespace headgate::kernels {

// A weight matrix in whichever form it is stored. It points to its weights and
// does not own them.
struct Matrix : std::variant<QuantMatrix, DenseMatrix> {
  using std::variant<QuantMatrix, DenseMatrix>::variant;
  const QuantMatrix* quant() const { return std::get_if<QuantMatrix>(this); }
  const DenseMatrix* dense() const { return std::get_if<DenseMatrix>(this); }
  int64_t rows() const { return quant() ? quant()->rows : dense()->rows; }
  int64_t cols() const { return quant() ? quant()->cols : dense()->cols; }
};

// Working memory that survives from call to call: numbered buffers, 64-byte
// aligned, that only grow. Whoever makes the calls owns it, and one Scratch serves
// one call at a time. Destroying it gives the memory back.
class Scratch {
 public:
  static constexpr size_t kBuffers = 16;

  // `count` values in buffer `slot`, contents undefined. Valid until the next call
  // for the same slot. Throws std::bad_alloc.
  template <class T>
  T* get(size_t slot, int64_t count) {
    return static_cast<T*>(bytes(slot, static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  struct Buffer {
    std::unique_ptr<std::byte, Free> data;
    size_t size = 0;
  };
  void* bytes(size_t slot, size_t size);
  std::array<Buffer, kBuffers> buffers_;
};

// Quantised activations that are still being written, row by row.
struct ActivationBuffer {
  int8_t* q = nullptr;
  float* scales = nullptr;
  float* sums = nullptr;
  std::byte* packed = nullptr;  // null for instruction sets that do not pack
  int64_t padded = 0;
  int32_t group = 64;

  // Room for `rows` rows as wide as the matrices of that many columns and that group
  // size, in kSlots buffers from `slot` on.
  static constexpr size_t kSlots = 4;
  static ActivationBuffer in(Scratch& scratch, const QuantKernels& kernels, size_t slot,
                             int64_t rows, int64_t cols, int32_t group);
  void quantize(const QuantKernels& kernels, const float* x, int64_t cols, int64_t row) const;
  void copy_row(int64_t from, int64_t to) const;
  // Before products of these rows with several tokens, if the instruction set packs.
  void pack(const QuantKernels& kernels, int64_t first, int64_t count) const;
  // A single row is ready without pack().
  QuantActivations rows(int64_t first, int64_t count) const;
};

// ys[i][t, row] = sum over columns of ws[i][row, column] * x[t, column], with x
// [tokens, cols] and ys[i] [tokens, ws[i].rows()], all row-major and none aliasing
// another. `exact` keeps activations in float32 for quantised matrices as well;
// otherwise these see int8 activations. Every matrix has the same number of columns.
// A token's result depends neither on the other tokens nor on the threads.
// Throws std::bad_alloc before anything is written.
void linear(ThreadPool& pool, const QuantKernels& kernels, Scratch& scratch, const float* x,
            int64_t tokens, std::span<const Matrix> ws, std::span<float* const> ys, bool exact);

// Rows to hand out at a time, for `rows` rows in all of about `row_bytes` bytes each:
// enough to hide the cost of asking, few enough to keep the threads even.
int64_t row_grain(const ThreadPool& pool, const QuantKernels& kernels, int64_t rows,
                  int64_t row_bytes, int64_t tokens);

// Bytes of weights that a product reads per row.
int64_t row_bytes(const Matrix& w);

}  // namespace headgate::kernels
