// One implementation of FloatKernels for every instruction set, written with the
// compiler's generic vectors. Each float_<isa>.cpp sets HEADGATE_FLOAT_LANES,
// HEADGATE_FLOAT_TILE_ROWS and HEADGATE_FLOAT_TILE_VECS, is compiled with its own
// flags, and includes this file once.
//
// Everything is in an unnamed namespace and nothing from the standard library is
// instantiated: a function with external linkage would exist once per instruction
// set under one name, and the linker would keep any of them.

#include <cstddef>

#include "kernels/float_kernels.h"

namespace headgate::kernels {
namespace {

// clang-format off: each needs the ones before it
#include "kernels/float_vector.inl"
#include "kernels/float_matmul.inl"
#include "kernels/float_attention.inl"
#include "kernels/float_delta.inl"
// clang-format on

void rms_norm(const float* x, const float* w, int64_t rows, int64_t width, float eps, float* y) {
  for (int64_t r = 0; r < rows; ++r, x += width, y += width) {
    const float scale = inverse_rms(x, width, eps);
    for (int64_t i = 0; i < width; i += kLanes) {
      store_some(y + i, load_some(x + i, width - i) * scale * load_some(w + i, width - i),
                 width - i);
    }
  }
}

void silu_mul(const float* gate, const float* up, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += kLanes) {
    store_some(y + i, silu(load_some(gate + i, n - i)) * load_some(up + i, n - i), n - i);
  }
}

void add_scaled(const float* base, const float* y, const float* gate_logit, int64_t rows,
                int64_t width, float* out) {
  for (int64_t r = 0; r < rows; ++r, base += width, y += width, out += width) {
    const float factor = gate_logit ? sigmoid(splat(gate_logit[r]))[0] : 1.0f;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t n = width - i;
      store_some(out + i, load_some(base + i, n) + factor * load_some(y + i, n), n);
    }
  }
}

// The k largest logits in descending order. NaN counts as smaller than any number.
void choose(const float* logits, int64_t experts, int64_t k, int32_t* ids, float* chosen) {
  const float lowest = -__builtin_inff();
  int64_t count = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const float x = logits[e] == logits[e] ? logits[e] : lowest;
    if (count == k && !(x > chosen[k - 1])) continue;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && x > chosen[at - 1]; --at) {
      chosen[at] = chosen[at - 1];
      ids[at] = ids[at - 1];
    }
    chosen[at] = x;
    ids[at] = static_cast<int32_t>(e);
  }
}

void route(const float* logits, int64_t rows, int64_t experts, int64_t k, bool renormalise,
           int32_t* ids, float* weights) {
  for (int64_t r = 0; r < rows; ++r, logits += experts, ids += k, weights += k) {
    choose(logits, experts, k, ids, weights);
    const float top = weights[0];
    Vec sums{};
    for (int64_t e = 0; e < experts; e += kLanes) {
      const int64_t n = experts - e;
      Vec p = exp(load_some(logits + e, n) - top);
      for (int64_t lane = n; lane < kLanes; ++lane) p[lane] = 0.0f;
      sums += p;
    }
    const float total = sum(sums);
    float kept = 0.0f;
    for (int64_t i = 0; i < k; ++i) {
      weights[i] = exp(logits[ids[i]] - top) / total;
      kept += weights[i];
    }
    for (int64_t i = 0; renormalise && i < k; ++i) weights[i] /= kept;
  }
}

constexpr FloatKernels kTable = {
    rms_norm,
    silu_mul,
    add_scaled,
    route,
    attention_store,
    attention_query_floats,
    attention_part_floats,
    attention_work_floats,
    attention_queries,
    attention_attend,
    attention_merge,
    delta_conv,
    delta_work_floats,
    delta_steps,
    delta_chunk,
};

}  // namespace
}  // namespace headgate::kernels
