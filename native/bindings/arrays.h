// Array types of the bindings, and checks that raise ValueError.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <new>
#include <string>

namespace headgate::bindings {

namespace nb = nanobind;

template <class T, class... Shape>
using Array = nb::ndarray<const T, Shape..., nb::c_contig, nb::device::cpu>;
template <class T>
using Vector = Array<T, nb::ndim<1>>;
template <class T>
using Table = Array<T, nb::ndim<2>>;
using Output = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Flat = Array<T>;  // any shape: only the number of elements matters

inline constexpr int64_t kMaxDimension = int64_t{1} << 30;  // bytes of two multiplied fit in int64

inline void require(bool holds, const char* otherwise) {
  if (!holds) throw nb::value_error(otherwise);
}

[[noreturn]] inline void refuse(const std::string& why) { throw nb::value_error(why.c_str()); }

inline void require_dimension(int64_t value, const char* what) {
  if (value < 1 || value > kMaxDimension) refuse(std::string(what) + " must be in [1, 2**30]");
}

inline void require_aligned(const void* p, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) refuse(std::string(what) + " is not aligned");
}

// A new float32 array, its memory owned by a capsule. It starts at a cache line: kernels
// that read vectors across two lines lose a third of their speed.
struct NewArray {
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlignment); }
  };
  NewArray(int64_t rows, int64_t cols)
      : shape{static_cast<size_t>(rows), static_cast<size_t>(cols)},
        data(static_cast<float*>(::operator new(shape[0] * shape[1] * sizeof(float), kAlignment))) {
  }
  nb::object take() {
    float* p = data.release();
    nb::capsule owner(p, [](void* q) noexcept { Free{}(static_cast<float*>(q)); });
    return nb::cast(nb::ndarray<nb::numpy, float>(p, 2, shape, owner));
  }
  size_t shape[2];
  std::unique_ptr<float, Free> data;
};

}  // namespace headgate::bindings
