// float32 operations over a pool of threads; see float_kernels.h for the formulas
// and the layouts of arrays.
//
// Shapes and pointers are the caller's responsibility (the Python binding checks
// them); nothing here throws except on lack of memory. Results are the same bits
// for any number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/float_kernels.h"
#include "kernels/thread_pool.h"

namespace headgate::kernels {

// Work memory of attention() and delta_net(). It grows to the largest request and
// is kept, so that repeated calls of one shape do not allocate. One call at a time.
class FloatScratch {
 public:
  // Makes room for `shared` floats and `each` floats for each of `slots` concurrent
  // loop bodies. Contents are lost. Throws std::bad_alloc.
  void prepare(int64_t shared, int64_t each, int slots);
  float* shared() { return memory_.get(); }

  // A slot, for the lifetime of this object; there must be a free one.
  class Slot {
   public:
    explicit Slot(FloatScratch& scratch);
    ~Slot() { taken_->store(false, std::memory_order_release); }
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;
    float* data() const { return data_; }

   private:
    std::atomic<bool>* taken_ = nullptr;
    float* data_ = nullptr;
  };

 private:
  struct Free {
    void operator()(float* memory) const;
  };
  std::unique_ptr<float, Free> memory_;
  std::unique_ptr<std::atomic<bool>[]> taken_;
  int64_t capacity_ = 0, shared_ = 0, each_ = 0;
  int slots_ = 0;
};

// x, y [rows][width]; w [width].
void rms_norm(const FloatKernels& kernels, ThreadPool& pool, const float* x, const float* w,
              int64_t rows, int64_t width, float eps, float* y);

// n values each.
void silu_mul(const FloatKernels& kernels, ThreadPool& pool, const float* gate, const float* up,
              int64_t n, float* y);

// base, y, out [rows][width]; gate_logit [rows] or null.
void add_scaled(const FloatKernels& kernels, ThreadPool& pool, const float* base, const float* y,
                const float* gate_logit, int64_t rows, int64_t width, float* out);

// logits [rows][experts]; ids, weights [rows][k], 1 <= k <= experts.
void route(const FloatKernels& kernels, ThreadPool& pool, const float* logits, int64_t rows,
           int64_t experts, int64_t k, bool renormalise, int32_t* ids, float* weights);

// Writes keys and values to the caches and y [tokens][heads][head_dim].
void attention(const FloatKernels& kernels, ThreadPool& pool, FloatScratch& scratch,
               const Attention& p, float* y);

// Updates conv_state and state; y [tokens][value_heads][dv].
void delta_net(const FloatKernels& kernels, ThreadPool& pool, FloatScratch& scratch,
               const DeltaNet& p, float* y);

}  // namespace headgate::kernels
