#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_io(nb::module_& m);
void bind_quant(nb::module_& m);
void bind_quantize(nb::module_& m);
void bind_float(nb::module_& m);
void bind_probe(nb::module_& m);

NB_MODULE(_native, m) {
  m.doc() = "Reading and multiplying: the compiled core of headgate.";
  bind_io(m);
  bind_quant(m);
  bind_quantize(m);
  bind_float(m);
  bind_probe(m);
}
