#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "bindings/arrays.h"
#include "kernels/probe.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace headgate::bindings;
using namespace headgate::kernels;

namespace {

uint64_t read_memory_of(ThreadPool& pool, const Vector<uint8_t>& data) {
  require(data.size() % 64 == 0, "data must hold a multiple of 64 bytes");
  require_aligned(data.data(), 64, "data");
  nb::gil_scoped_release release;
  return read_memory(pool, data.data(), static_cast<int64_t>(data.size() / 64));
}

}  // namespace

void bind_probe(nb::module_& m) {
  m.def("read_memory", &read_memory_of, "pool"_a, "data"_a,
        "Read all bytes, 64-byte aligned, and return the exclusive or of their 64-bit words.");
}
