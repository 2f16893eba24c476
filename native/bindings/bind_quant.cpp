// Products with stored weights. Everything that the kernels take on trust is
// checked here: sizes, offsets and indices; a wrong one raises ValueError.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "kernels/expert_ffn.h"
#include "kernels/linear.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace headgate::bindings;
using namespace headgate::kernels;

namespace {

HalfType parse_half(const std::string& text) {
  require(text == "bf16" || text == "f16", "half must be \"bf16\" or \"f16\"");
  return text == "bf16" ? HalfType::bf16 : HalfType::f16;
}

bool is_width(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

void require_format(int group, int stored_bits, int used_bits) {
  require(group == 32 || group == 64 || group == 128, "group must be 32, 64 or 128");
  require(is_width(stored_bits), "stored_bits must be 2, 3, 4 or 8");
  require(is_width(used_bits) && used_bits <= stored_bits,
          "used_bits must be 2, 3, 4 or 8, and not above stored_bits");
}

// A table of kernels and the working memory of the calls that use it.
struct Kernels {
  explicit Kernels(const std::string& isa)
      : isa(isa.empty() ? best_isa() : parse_isa(isa.c_str())), table(quant_kernels(this->isa)) {}
  Isa isa;
  const QuantKernels& table;
  Scratch scratch;
  std::mutex mutex;  // over scratch
};

// A matrix and the arrays that it points into.
struct BoundMatrix {
  Matrix matrix;
  std::vector<nb::object> owners;
  int64_t nbytes = 0;

  template <class T>
  const T* keep(const Flat<T>& array, int64_t count, const char* what) {
    if (static_cast<int64_t>(array.size()) != count) {
      refuse(std::string(what) + " must have " + std::to_string(count) + " elements, not " +
             std::to_string(array.size()));
    }
    require_aligned(array.data(), alignof(T), what);
    owners.push_back(nb::cast(array));
    nbytes += count * static_cast<int64_t>(sizeof(T));
    return array.data();
  }
};

BoundMatrix quantized(int64_t rows, int64_t cols, int group, int stored_bits, int used_bits,
                      const std::string& half, const Flat<uint16_t>& scales,
                      const Flat<uint16_t>& biases, const Flat<uint8_t>& q2,
                      const std::optional<Flat<uint8_t>>& q3,
                      const std::optional<Flat<uint8_t>>& q4,
                      const std::optional<Flat<uint8_t>>& q8) {
  require_dimension(rows, "rows");
  require_dimension(cols, "cols");
  require_format(group, stored_bits, used_bits);
  BoundMatrix bound;
  QuantMatrix w;
  w.rows = rows;
  w.cols = cols;
  w.group = group;
  w.stored_bits = stored_bits;
  w.used_bits = used_bits;
  w.half = parse_half(half);
  const int64_t groups = rows * (w.padded() / group), blocks = rows * (w.padded() / 64);
  w.scales = bound.keep(scales, groups, "scales");
  w.biases = bound.keep(biases, groups, "biases");
  w.q2 = bound.keep(q2, blocks * 16, "q2");
  const auto plane = [&](const auto& array, int bits, int64_t bytes, const char* what) {
    if (used_bits < bits) return static_cast<const uint8_t*>(nullptr);
    if (!array.has_value()) refuse(std::string(what) + " is missing");
    return bound.keep(*array, blocks * bytes, what);
  };
  w.q3 = plane(q3, 3, 8, "q3");
  w.q4 = plane(q4, 4, 8, "q4");
  w.q8 = plane(q8, 8, 32, "q8");
  bound.matrix = w;
  return bound;
}

template <class T>
Flat<T> cast_array(const nb::object& data, const char* otherwise) {
  Flat<T> array;
  require(nb::try_cast(data, array, false), otherwise);
  return array;
}

BoundMatrix dense(int64_t rows, int64_t cols, const nb::object& data, const std::string& dtype) {
  require_dimension(rows, "rows");
  require_dimension(cols, "cols");
  require(dtype == "f32" || dtype == "bf16" || dtype == "f16",
          "dtype must be \"f32\", \"bf16\" or \"f16\"");
  BoundMatrix bound;
  DenseMatrix w{nullptr, rows, cols, DenseType::f32};
  if (dtype == "f32") {
    w.data = bound.keep(cast_array<float>(data, "data must be a C-contiguous float32 array"),
                        rows * cols, "data");
  } else {
    w.type = dtype == "bf16" ? DenseType::bf16 : DenseType::f16;
    w.data = bound.keep(cast_array<uint16_t>(data, "data must be a C-contiguous uint16 array"),
                        rows * cols, "data");
  }
  bound.matrix = w;
  return bound;
}

// `matrices` are references of our own: another Python thread may change the list
// while this one computes.
nb::list linear_list(ThreadPool& pool, Kernels& kernels, const Table<float>& x,
                     const std::vector<nb::object>& matrices, bool exact) {
  const auto tokens = static_cast<int64_t>(x.shape(0)), cols = static_cast<int64_t>(x.shape(1));
  require_aligned(x.data(), alignof(float), "x");
  std::vector<Matrix> ws;
  std::vector<NewArray> outputs;
  std::vector<float*> ys;
  for (const nb::object& object : matrices) {
    if (!nb::isinstance<BoundMatrix>(object)) throw nb::type_error("matrices must be Matrix");
    const Matrix& w = nb::cast<const BoundMatrix&>(object).matrix;
    if (w.cols() != cols) {
      refuse("x has " + std::to_string(cols) + " columns, a matrix has " +
             std::to_string(w.cols()));
    }
    ws.push_back(w);
    outputs.emplace_back(tokens, w.rows());
    ys.push_back(outputs.back().data.get());
  }
  {
    nb::gil_scoped_release release;  // before the lock: its holder may need the GIL
    std::lock_guard lock(kernels.mutex);
    linear(pool, kernels.table, kernels.scratch, x.data(), tokens, ws, ys, exact);
  }
  nb::list result;
  for (auto& output : outputs) result.append(output.take());
  return result;
}

// One piece of a record, checked to lie in the prefix.
int64_t piece(const nb::dict& offsets, const char* name, int64_t size, int64_t align,
              int64_t prefix) {
  if (!offsets.contains(name)) refuse(std::string("offset of ") + name + " is missing");
  int64_t at = 0;
  if (!nb::try_cast(offsets[name], at, false)) throw nb::type_error("an offset must be an int");
  if (at < 0 || size > prefix || at > prefix - size) {
    refuse(std::string(name) + " does not lie in the first " + std::to_string(prefix) + " bytes");
  }
  if (at % align != 0) refuse(std::string(name) + " is not aligned");
  return at;
}

MatrixOffsets offsets_of(const ExpertLayout& layout, const nb::dict& offsets, int64_t rows,
                         int64_t cols) {
  const int64_t prefix = layout.prefix_bytes;
  MatrixOffsets at;
  if (layout.kind != ExpertKind::quant) {
    at.data = piece(offsets, "data", rows * cols * 2, 2, prefix);
    return at;
  }
  QuantMatrix shape;
  shape.cols = cols;
  shape.group = layout.group;
  const int64_t groups = rows * (shape.padded() / layout.group);
  const int64_t blocks = rows * (shape.padded() / 64);
  at.scales = piece(offsets, "scales", groups * 2, 2, prefix);
  at.biases = piece(offsets, "biases", groups * 2, 2, prefix);
  at.q2 = piece(offsets, "q2", blocks * 16, 1, prefix);
  if (layout.used_bits >= 3) at.q3 = piece(offsets, "q3", blocks * 8, 1, prefix);
  if (layout.used_bits >= 4) at.q4 = piece(offsets, "q4", blocks * 8, 1, prefix);
  if (layout.used_bits >= 8) at.q8 = piece(offsets, "q8", blocks * 32, 1, prefix);
  return at;
}

ExpertLayout make_layout(int64_t hidden, int64_t inter, const nb::dict& gate, const nb::dict& up,
                         const nb::dict& down, int64_t prefix_bytes, const std::string& kind,
                         int group, int stored_bits, int used_bits, const std::string& half) {
  require_dimension(hidden, "hidden");
  require_dimension(inter, "inter");
  require(kind == "quant" || kind == "bf16" || kind == "f16",
          "kind must be \"quant\", \"bf16\" or \"f16\"");
  ExpertLayout layout;
  layout.hidden = hidden;
  layout.inter = inter;
  layout.prefix_bytes = prefix_bytes;
  layout.half = parse_half(half);
  if (kind == "quant") {
    require_format(group, stored_bits, used_bits);
    layout.group = group;
    layout.stored_bits = stored_bits;
    layout.used_bits = used_bits;
  } else {
    layout.kind = kind == "bf16" ? ExpertKind::bf16 : ExpertKind::f16;
  }
  layout.gate = offsets_of(layout, gate, inter, hidden);
  layout.up = offsets_of(layout, up, inter, hidden);
  layout.down = offsets_of(layout, down, hidden, inter);
  return layout;
}

// The start of every record, each checked to be inside the arena.
std::vector<const std::byte*> records_in(const Vector<uint8_t>& arena,
                                         const std::vector<int64_t>& offsets, int64_t prefix) {
  const auto size = static_cast<int64_t>(arena.size());
  const auto* base = reinterpret_cast<const std::byte*>(arena.data());
  std::vector<const std::byte*> records;
  for (const int64_t offset : offsets) {
    require(offset >= 0 && prefix <= size && offset <= size - prefix,
            "a record does not lie in the arena");
    records.push_back(base + offset);
    require_aligned(records.back(), 2, "a record");
  }
  return records;
}

template <class T>
std::span<const T> span_of(const Vector<T>& array, const char* what) {
  require_aligned(array.data(), alignof(T), what);
  return {array.data(), array.size()};
}

void check_pairs(std::span<const int32_t> splits, size_t experts, std::span<const int32_t> token_of,
                 std::span<const int32_t> out_row, int64_t tokens, int64_t rows) {
  require(splits.size() == experts + 1, "splits must have one element more than offsets");
  require(splits.front() == 0 && std::is_sorted(splits.begin(), splits.end()),
          "splits must start at 0 and not decrease");
  require(
      static_cast<size_t>(splits.back()) == token_of.size() && token_of.size() == out_row.size(),
      "token_of and out_row must have splits[-1] elements");
  std::vector<bool> taken(static_cast<size_t>(rows));
  for (size_t p = 0; p < token_of.size(); ++p) {
    require(token_of[p] >= 0 && token_of[p] < tokens, "token_of is out of range");
    require(out_row[p] >= 0 && out_row[p] < rows, "out_row is out of range");
    require(!taken[static_cast<size_t>(out_row[p])], "out_row names a row twice");
    taken[static_cast<size_t>(out_row[p])] = true;
  }
}

void run_experts(ThreadPool& pool, Kernels& kernels, const ExpertLayout& layout,
                 const Vector<uint8_t>& arena, const std::vector<int64_t>& offsets,
                 const Vector<int32_t>& splits_array, const Vector<int32_t>& token_of_array,
                 const Vector<int32_t>& out_row_array, const Table<float>& x, Output y,
                 bool exact) {
  const auto records = records_in(arena, offsets, layout.prefix_bytes);
  // Copies: another Python thread may write to the arrays while this one computes.
  const auto copy = [](std::span<const int32_t> s) {
    return std::vector<int32_t>(s.begin(), s.end());
  };
  const auto splits = copy(span_of(splits_array, "splits"));
  const auto token_of = copy(span_of(token_of_array, "token_of"));
  const auto out_row = copy(span_of(out_row_array, "out_row"));
  const auto tokens = static_cast<int64_t>(x.shape(0));
  require(static_cast<int64_t>(x.shape(1)) == layout.hidden, "x must have `hidden` columns");
  require(static_cast<int64_t>(y.shape(1)) == layout.hidden, "y must have `hidden` columns");
  require_aligned(x.data(), alignof(float), "x");
  require_aligned(y.data(), alignof(float), "y");
  check_pairs(splits, records.size(), token_of, out_row, tokens, static_cast<int64_t>(y.shape(0)));
  nb::gil_scoped_release release;
  std::lock_guard lock(kernels.mutex);
  expert_ffn(pool, kernels.table, kernels.scratch, layout, records, splits, token_of, out_row,
             x.data(), tokens, y.data(), exact);
}

nb::object combine_rows(ThreadPool& pool, const Table<float>& y, const Table<float>& weights,
                        const Table<float>& base) {
  const size_t tokens = weights.shape(0), experts = weights.shape(1), hidden = base.shape(1);
  require(base.shape(0) == tokens, "base and weights must have the same number of rows");
  require(y.shape(0) == tokens * experts && y.shape(1) == hidden,
          "y must be [tokens * experts, hidden]");
  for (const auto* p : {y.data(), weights.data(), base.data()}) {
    require_aligned(p, alignof(float), "an array");
  }
  NewArray out(static_cast<int64_t>(tokens), static_cast<int64_t>(hidden));
  {
    nb::gil_scoped_release release;
    combine(pool, y.data(), weights.data(), base.data(), out.data.get(),
            static_cast<int64_t>(tokens), static_cast<int64_t>(experts),
            static_cast<int64_t>(hidden));
  }
  return out.take();
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::amx, Isa::avx512, Isa::avx2, Isa::neon, Isa::scalar}) {
    if (supports(isa)) names.emplace_back(name(isa));
  }
  return names;
}

void bind_classes(nb::module_& m) {
  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int>(), "threads"_a)
      .def_prop_ro("threads", &ThreadPool::threads);
  nb::class_<Kernels>(m, "Kernels")
      .def(nb::init<const std::string&>(), "isa"_a = "")
      .def_prop_ro("name", [](const Kernels& k) { return name(k.isa); });
  nb::class_<BoundMatrix>(m, "Matrix")
      .def_static("quantized", &quantized, "rows"_a, "cols"_a, "group"_a, "stored_bits"_a,
                  "used_bits"_a, "half"_a, "scales"_a.noconvert(), "biases"_a.noconvert(),
                  "q2"_a.noconvert(), "q3"_a.noconvert().none() = nb::none(),
                  "q4"_a.noconvert().none() = nb::none(), "q8"_a.noconvert().none() = nb::none())
      .def_static("dense", &dense, "rows"_a, "cols"_a, "data"_a, "dtype"_a)
      .def_prop_ro("rows", [](const BoundMatrix& b) { return b.matrix.rows(); })
      .def_prop_ro("cols", [](const BoundMatrix& b) { return b.matrix.cols(); })
      .def_ro("nbytes", &BoundMatrix::nbytes);
  nb::class_<ExpertLayout>(m, "ExpertLayout")
      .def_ro("hidden", &ExpertLayout::hidden)
      .def_ro("inter", &ExpertLayout::inter)
      .def_ro("group", &ExpertLayout::group)
      .def_ro("stored_bits", &ExpertLayout::stored_bits)
      .def_ro("used_bits", &ExpertLayout::used_bits)
      .def_ro("prefix_bytes", &ExpertLayout::prefix_bytes)
      .def(
          "__init__",
          [](ExpertLayout* self, int64_t hidden, int64_t inter, const nb::dict& gate,
             const nb::dict& up, const nb::dict& down, int64_t prefix_bytes,
             const std::string& kind, int group, int stored_bits, int used_bits,
             const std::string& half) {
            new (self) ExpertLayout(make_layout(hidden, inter, gate, up, down, prefix_bytes, kind,
                                                group, stored_bits, used_bits, half));
          },
          nb::kw_only(), "hidden"_a, "inter"_a, "gate"_a, "up"_a, "down"_a, "prefix_bytes"_a,
          "kind"_a = "quant", "group"_a = 64, "stored_bits"_a = 4, "used_bits"_a = 4,
          "half"_a = "bf16");
}

}  // namespace

void bind_quant(nb::module_& m) {
  bind_classes(m);
  m.def("isa_names", &isa_names, "Instruction sets that can run here, best first.");
  m.def("linear", &linear_list, "pool"_a, "kernels"_a, "x"_a.noconvert(), "matrices"_a,
        "exact"_a = false);
  m.def("expert_ffn", &run_experts, "pool"_a, "kernels"_a, "layout"_a, "arena"_a.noconvert(),
        "offsets"_a, "splits"_a.noconvert(), "token_of"_a.noconvert(), "out_row"_a.noconvert(),
        "x"_a.noconvert(), "y"_a.noconvert(), "exact"_a = false);
  m.def("combine", &combine_rows, "pool"_a, "y"_a.noconvert(), "weights"_a.noconvert(),
        "base"_a.noconvert());
}
