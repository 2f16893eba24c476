#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "kernels/quantize.h"

namespace nb = nanobind;
using headgate::kernels::ThreadPool;

namespace {

template <class T>
using Array2 = nb::ndarray<const T, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;

template <class T>
struct Fresh {
  explicit Fresh(std::vector<size_t> shape) : shape(std::move(shape)) {
    size_t n = 1;
    for (size_t d : this->shape) n *= d;
    data = std::make_unique<T[]>(n);
  }
  nb::object take() {
    T* p = data.release();
    nb::capsule owner(p, [](void* q) noexcept { delete[] static_cast<T*>(q); });
    return nb::cast(nb::ndarray<nb::numpy, T>(p, shape.size(), shape.data(), owner));
  }
  std::vector<size_t> shape;
  std::unique_ptr<T[]> data;
};

void check_bits(int bits) {
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    throw nb::value_error("bits must be 2, 3, 4 or 8");
  }
}

nb::tuple quantize_groups(ThreadPool& pool, const Array2<float>& groups, int bits, bool nested) {
  check_bits(bits);
  const size_t n = groups.shape(0), size = groups.shape(1);
  if (size != 32 && size != 64 && size != 128) {
    throw nb::value_error("groups must hold 32, 64 or 128 weights");
  }
  Fresh<uint8_t> codes({n, size});
  Fresh<uint16_t> scales({n}), biases({n});
  {
    nb::gil_scoped_release release;
    headgate::kernels::quantize_groups(pool, groups.data(), static_cast<int64_t>(n),
                                       static_cast<int>(size), bits, nested, codes.data.get(),
                                       scales.data.get(), biases.data.get());
  }
  return nb::make_tuple(codes.take(), scales.take(), biases.take());
}

nb::list pack_planes(ThreadPool& pool, const Array2<uint8_t>& codes, int bits) {
  check_bits(bits);
  const size_t rows = codes.shape(0), columns = codes.shape(1);
  if (columns % 64 != 0) throw nb::value_error("columns must be a multiple of 64");
  const size_t blocks = columns / 64;
  constexpr size_t kBytes[] = {16, 8, 8, 32};
  const int planes = bits == 8 ? 4 : bits - 1;
  std::vector<Fresh<uint8_t>> out;
  uint8_t* q[4] = {};
  for (int i = 0; i < planes; ++i) {
    out.emplace_back(std::vector<size_t>{rows, blocks * kBytes[i]});
    q[i] = out.back().data.get();
  }
  {
    nb::gil_scoped_release release;
    headgate::kernels::pack_planes(pool, codes.data(), static_cast<int64_t>(rows),
                                   static_cast<int64_t>(columns), bits, q[0], q[1], q[2], q[3]);
  }
  nb::list result;
  for (auto& plane : out) result.append(plane.take());
  return result;
}

}  // namespace

void bind_quantize(nb::module_& m) {
  m.def("quantize_groups", &quantize_groups, nb::arg("pool"), nb::arg("groups"), nb::arg("bits"),
        nb::arg("nested"));
  m.def("pack_planes", &pack_planes, nb::arg("pool"), nb::arg("codes"), nb::arg("bits"));
}
