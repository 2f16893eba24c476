#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/float_ops.h"

namespace nb = nanobind;
using namespace nb::literals;
namespace hk = headgate::kernels;
using hk::ThreadPool;

namespace {

template <int N>
using In = nb::ndarray<const float, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <int N>
using InOut = nb::ndarray<float, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

// Dimension i. Arrays without elements may claim any shape; the limit keeps products
// of two dimensions within int64.
template <class Array>
int64_t dim(const Array& x, size_t i) {
  if (x.shape(i) > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    refuse("an array dimension is too large");
  }
  return static_cast<int64_t>(x.shape(i));
}

template <class Array, class... Dims>
void expect(const Array& x, const char* name, Dims... dims) {
  const int64_t wanted[] = {static_cast<int64_t>(dims)...};
  bool same = x.ndim() == sizeof...(dims);
  std::string shape, actual;
  for (size_t i = 0; same && i < sizeof...(dims); ++i) same = dim(x, i) == wanted[i];
  if (same) return;
  for (int64_t d : wanted) shape += (shape.empty() ? "" : ", ") + std::to_string(d);
  for (size_t i = 0; i < x.ndim(); ++i) {
    actual += (i ? ", " : "") + std::to_string(x.shape(i));
  }
  refuse(std::string(name) + " must have shape (" + shape + "), not (" + actual + ")");
}

void check_eps(float eps) {
  if (!(eps >= 0.0f) || std::isinf(eps)) refuse("eps must be a number >= 0");
}

// Vectors that straddle cache lines cost up to half of the speed, and numpy aligns
// to 16 bytes only.
constexpr std::align_val_t kAlignment{64};

// A new array that numpy will own.
template <class T>
class Fresh {
 public:
  explicit Fresh(std::vector<size_t> dims) : shape_(std::move(dims)), bytes_(sizeof(T)) {
    for (size_t d : shape_) {
      if (__builtin_mul_overflow(bytes_, d, &bytes_)) throw std::bad_alloc();
    }
    data_.reset(static_cast<T*>(::operator new(std::max<size_t>(bytes_, 1), kAlignment)));
  }
  Fresh(int64_t rows, int64_t columns)
      : Fresh(std::vector{static_cast<size_t>(rows), static_cast<size_t>(columns)}) {}

  T* data() { return data_.get(); }
  size_t bytes() const { return bytes_; }
  nb::object take() {
    nb::capsule owner(data_.get(), [](void* p) noexcept { ::operator delete(p, kAlignment); });
    T* p = data_.release();
    return nb::cast(nb::ndarray<nb::numpy, T>(p, shape_.size(), shape_.data(), owner));
  }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::vector<size_t> shape_;
  size_t bytes_;
  std::unique_ptr<T, Free> data_;
};

class FloatOps {
 public:
  explicit FloatOps(const std::string& isa)
      : isa_(isa.empty() ? hk::best_isa() : hk::parse_isa(isa.c_str())),
        kernels_(hk::float_kernels(isa_)) {}

  const char* isa() const { return hk::name(isa_); }

  nb::object rms_norm(ThreadPool& pool, const In<2>& x, const In<1>& w, float eps) {
    const int64_t rows = dim(x, 0), width = dim(x, 1);
    expect(w, "w", width);
    check_eps(eps);
    Fresh<float> y(rows, width);
    run([&] { hk::rms_norm(kernels_, pool, x.data(), w.data(), rows, width, eps, y.data()); });
    return y.take();
  }

  nb::object silu_mul(ThreadPool& pool, const In<2>& gate, const In<2>& up) {
    const int64_t rows = dim(gate, 0), width = dim(gate, 1);
    expect(up, "up", rows, width);
    Fresh<float> y(rows, width);
    run([&] { hk::silu_mul(kernels_, pool, gate.data(), up.data(), rows * width, y.data()); });
    return y.take();
  }

  nb::object add_scaled(ThreadPool& pool, const In<2>& base, const In<2>& y,
                        const std::optional<In<1>>& gate_logit) {
    const int64_t rows = dim(base, 0), width = dim(base, 1);
    expect(y, "y", rows, width);
    if (gate_logit) expect(*gate_logit, "gate_logit", rows);
    Fresh<float> out(rows, width);
    run([&] {
      hk::add_scaled(kernels_, pool, base.data(), y.data(),
                     gate_logit ? gate_logit->data() : nullptr, rows, width, out.data());
    });
    return out.take();
  }

  nb::tuple route(ThreadPool& pool, const In<2>& logits, int64_t k, bool renormalise) {
    const int64_t rows = dim(logits, 0), experts = dim(logits, 1);
    if (k < 1 || k > experts) refuse("k must lie between 1 and the number of experts");
    Fresh<int32_t> ids(rows, k);
    Fresh<float> weights(rows, k);
    run([&] {
      hk::route(kernels_, pool, logits.data(), rows, experts, k, renormalise, ids.data(),
                weights.data());
    });
    return nb::make_tuple(ids.take(), weights.take());
  }

  nb::object attention(ThreadPool& pool, const In<2>& q, const In<2>& k, const In<2>& v,
                       const InOut<3>& k_cache, const InOut<3>& v_cache, int64_t start,
                       const In<2>& cos, const In<2>& sin, const std::optional<In<1>>& q_norm,
                       const std::optional<In<1>>& k_norm, float eps, std::optional<float> scale,
                       bool gated) {
    hk::Attention p;
    p.tokens = dim(q, 0);
    p.kv_heads = dim(k_cache, 1);
    p.head_dim = dim(k_cache, 2);
    const int64_t capacity = dim(k_cache, 0), width = p.kv_heads * p.head_dim;
    const int64_t head = p.head_dim * (gated ? 2 : 1);
    if (width == 0) refuse("k_cache must have shape (capacity, kv heads, head dim)");
    if (dim(q, 1) == 0 || dim(q, 1) % head != 0 || dim(q, 1) / head % p.kv_heads != 0) {
      refuse("q must hold a multiple of kv heads * head dim values (twice that if gated)");
    }
    p.heads = dim(q, 1) / head;
    expect(k, "k", p.tokens, width);
    expect(v, "v", p.tokens, width);
    expect(v_cache, "v_cache", capacity, p.kv_heads, p.head_dim);
    p.rotary = 2 * dim(cos, 1);
    expect(cos, "cos", p.tokens, p.rotary / 2);
    expect(sin, "sin", p.tokens, p.rotary / 2);
    if (p.rotary > p.head_dim) refuse("cos must not have more than head dim / 2 columns");
    if (q_norm) expect(*q_norm, "q_norm", p.head_dim);
    if (k_norm) expect(*k_norm, "k_norm", p.head_dim);
    check_eps(eps);
    if (start < 0 || p.tokens > capacity || start > capacity - p.tokens) {
      refuse("rows start .. start + tokens must lie within the cache");
    }
    p.q = q.data();
    p.k = k.data();
    p.v = v.data();
    p.q_norm = q_norm ? q_norm->data() : nullptr;
    p.k_norm = k_norm ? k_norm->data() : nullptr;
    p.cos = cos.data();
    p.sin = sin.data();
    p.k_cache = k_cache.data();
    p.v_cache = v_cache.data();
    p.start = start;
    p.eps = eps;
    p.scale = scale ? *scale : 1.0f / std::sqrt(static_cast<float>(p.head_dim));
    p.gated = gated;
    Fresh<float> y(p.tokens, p.heads * p.head_dim);
    run([&] { hk::attention(kernels_, pool, scratch_, p, y.data()); });
    return y.take();
  }

  nb::object delta_net(ThreadPool& pool, const In<2>& qkv, const In<2>& z, const In<2>& b,
                       const In<2>& a, const In<2>& conv_w, const In<1>& neg_exp_a,
                       const In<1>& dt_bias, const In<1>& norm_w, const InOut<2>& conv_state,
                       const InOut<3>& state, float eps, int64_t chunk) {
    hk::DeltaNet p;
    p.tokens = dim(qkv, 0);
    p.channels = dim(qkv, 1);
    p.value_heads = dim(state, 0);
    p.dk = dim(state, 1);
    p.dv = dim(state, 2);
    p.taps = dim(conv_w, 1);
    p.chunk = chunk;
    p.eps = eps;
    if (p.value_heads == 0 || p.dk == 0 || p.dv == 0) {
      refuse("state must have shape (value heads, dk, dv), none of them 0");
    }
    const int64_t rest = p.channels - p.value_heads * p.dv;
    p.key_heads = rest > 0 && rest % (2 * p.dk) == 0 ? rest / (2 * p.dk) : 0;
    if (p.key_heads == 0 || p.value_heads % p.key_heads != 0) {
      refuse(
          "qkv must hold 2 * key heads * dk + value heads * dv channels, "
          "the value heads a multiple of the key heads");
    }
    if (p.taps < 2 || p.taps > 8) refuse("conv_w must have 2 to 8 taps");
    if (chunk < 1 || chunk > 512) refuse("chunk must lie between 1 and 512");
    check_eps(eps);
    expect(z, "z", p.tokens, p.value_heads * p.dv);
    expect(b, "b", p.tokens, p.value_heads);
    expect(a, "a", p.tokens, p.value_heads);
    expect(conv_w, "conv_w", p.channels, p.taps);
    expect(neg_exp_a, "neg_exp_a", p.value_heads);
    expect(dt_bias, "dt_bias", p.value_heads);
    expect(norm_w, "norm_w", p.dv);
    expect(conv_state, "conv_state", p.channels, p.taps - 1);
    p.qkv = qkv.data();
    p.z = z.data();
    p.b = b.data();
    p.a = a.data();
    p.conv_w = conv_w.data();
    p.neg_exp_a = neg_exp_a.data();
    p.dt_bias = dt_bias.data();
    p.norm_w = norm_w.data();
    p.conv_state = conv_state.data();
    p.state = state.data();
    Fresh<float> y(p.tokens, p.value_heads * p.dv);
    run([&] { hk::delta_net(kernels_, pool, scratch_, p, y.data()); });
    return y.take();
  }

 private:
  // Computes without the interpreter lock; one call at a time, since they share the
  // scratch memory. Taking the mutex after giving up the lock avoids a deadlock.
  template <class Compute>
  void run(Compute compute) {
    nb::gil_scoped_release release;
    std::lock_guard lock(mutex_);
    compute();
  }

  hk::Isa isa_;
  const hk::FloatKernels& kernels_;
  hk::FloatScratch scratch_;
  std::mutex mutex_;
};

constexpr const char* kDoc =
    R"(float32 operations between the matrix products.

Arrays are float32, C-contiguous and never converted; results are new arrays and
the same bits for any number of threads. Wrong shapes raise ValueError, wrong
types TypeError. Calls on one object take turns, without the interpreter lock.

isa: "scalar", "avx2", "avx512", "amx" or "neon"; "" for the best one here.)";

constexpr const char* kAttentionDoc =
    R"(Causal grouped-query attention of new tokens over a cache -> y (tokens, heads * hd).

q (tokens, heads * hd), or if gated (tokens, heads * 2 * hd) with each head's hd
query values followed by hd gate values: y is then multiplied by sigmoid(gate).
k, v (tokens, kv_heads * hd). k_cache, v_cache (capacity, kv_heads, hd): rows
start .. start + tokens are written, rows before start are read.
cos, sin (tokens, rotary / 2): dimensions i and i + rotary / 2 are rotated together.
q_norm, k_norm (hd): weights of an RMS norm before the rotation, or None.
scale: of the scores; hd ** -0.5 if None.)";

constexpr const char* kDeltaNetDoc =
    R"(Gated DeltaNet (https://arxiv.org/abs/2412.06464) -> y (tokens, value_heads * dv).

qkv (tokens, channels = 2 * key_heads * dk + value_heads * dv), before the
convolution; z (tokens, value_heads * dv); b, a (tokens, value_heads);
conv_w (channels, taps), the oldest tap first, 2 to 8 taps; neg_exp_a = -exp(A_log)
and dt_bias (value_heads); norm_w (dv). conv_state (channels, taps - 1), the oldest
first, and state (value_heads, dk, dv) are updated in place. eps: of the output norm.
chunk: tokens that a prompt is processed by, 1 to 512.)";

}  // namespace

void bind_float(nb::module_& m) {
  auto in = [](const char* name) { return nb::arg(name).noconvert(); };
  auto maybe = [](const char* name) { return nb::arg(name).noconvert().none() = nb::none(); };
  nb::class_<FloatOps>(m, "FloatOps", kDoc)
      .def(nb::init<const std::string&>(), "isa"_a = "")
      .def_prop_ro("isa", &FloatOps::isa)
      .def("rms_norm", &FloatOps::rms_norm, "pool"_a, in("x"), in("w"), "eps"_a,
           "x * rsqrt(mean(x^2) + eps) * w over rows; x (rows, width), w (width).")
      .def("silu_mul", &FloatOps::silu_mul, "pool"_a, in("gate"), in("up"),
           "silu(gate) * up; both (rows, width).")
      .def("add_scaled", &FloatOps::add_scaled, "pool"_a, in("base"), in("y"), maybe("gate_logit"),
           "base + sigmoid(gate_logit) * y, or base + y; gate_logit (rows).")
      .def("route", &FloatOps::route, "pool"_a, in("logits"), "k"_a, "renormalise"_a = true,
           "The k largest softmax probabilities of each row, largest first, equal logits by "
           "index -> ids (rows, k) int32, weights (rows, k). renormalise: divided by their sum.")
      .def("attention", &FloatOps::attention, "pool"_a, in("q"), in("k"), in("v"), in("k_cache"),
           in("v_cache"), "start"_a, in("cos"), in("sin"), maybe("q_norm"), maybe("k_norm"),
           "eps"_a = 1e-6f, "scale"_a = nb::none(), "gated"_a = false, kAttentionDoc)
      .def("delta_net", &FloatOps::delta_net, "pool"_a, in("qkv"), in("z"), in("b"), in("a"),
           in("conv_w"), in("neg_exp_a"), in("dt_bias"), in("norm_w"), in("conv_state"),
           in("state"), "eps"_a = 1e-6f, "chunk"_a = 64, kDeltaNetDoc);
}
