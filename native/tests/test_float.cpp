// Every float32 operation against a plain double-precision one, for every
// instruction set that runs here.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "kernels/float_ops.h"
#include "tests/check.h"

using namespace headgate::kernels;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

std::mt19937 rng(1);

int64_t pick(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}

Floats normal(int64_t n, float scale = 1.0f) {
  Floats x(static_cast<size_t>(n));
  std::normal_distribution<float> draw(0.0f, scale);
  for (float& v : x) v = draw(rng);
  return x;
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// Largest difference relative to the largest value.
double error(const Floats& x, const Doubles& y) {
  CHECK(x.size() == y.size());
  double worst = 0.0, largest = 1e-30;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!(std::abs(x[i] - y[i]) <= worst)) worst = std::abs(x[i] - y[i]);
    largest = std::max(largest, std::abs(y[i]));
  }
  return worst / largest;
}

bool same_bits(const Floats& x, const Floats& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

struct Machine {
  explicit Machine(const FloatKernels& table) : kernels(table) {}
  const FloatKernels& kernels;
  ThreadPool one{1}, three{3};
  FloatScratch scratch;
};

void elementwise_ops_match(Machine& m) {
  for (int round = 0; round < 30; ++round) {
    const int64_t rows = pick(1, 5), n = pick(1, 300);
    const Floats x = normal(rows * n, 4.0f), y = normal(rows * n), w = normal(n);
    const Floats logit = normal(rows, 30.0f);
    Doubles norm(x.size()), mul(x.size()), sum(x.size()), gated(x.size());
    for (int64_t r = 0; r < rows; ++r) {
      double squares = 0.0;
      for (int64_t i = 0; i < n; ++i) squares += double(x[r * n + i]) * x[r * n + i];
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = r * n + i;
        norm[at] = x[at] / std::sqrt(squares / double(n) + 1e-5) * w[i];
        mul[at] = x[at] * sigmoid(x[at]) * y[at];
        sum[at] = double(x[at]) + y[at];
        gated[at] = x[at] + sigmoid(logit[r]) * y[at];
      }
    }
    Floats out(x.size());
    rms_norm(m.kernels, m.three, x.data(), w.data(), rows, n, 1e-5f, out.data());
    CHECK(error(out, norm) < 1e-6);
    silu_mul(m.kernels, m.three, x.data(), y.data(), rows * n, out.data());
    CHECK(error(out, mul) < 1e-6);
    add_scaled(m.kernels, m.three, x.data(), y.data(), nullptr, rows, n, out.data());
    CHECK(error(out, sum) < 1e-6);
    add_scaled(m.kernels, m.three, x.data(), y.data(), logit.data(), rows, n, out.data());
    CHECK(error(out, gated) < 1e-6);
  }
}

// silu_mul(x, 1) = x / (1 + exp(-x)) shows the relative error of exp.
void exponential_is_accurate(Machine& m) {
  Floats x;
  for (float v = -86.0f; v < 86.0f; v += 0.0173f) x.push_back(v);
  const Floats ones(x.size(), 1.0f);
  Floats y(x.size());
  silu_mul(m.kernels, m.one, x.data(), ones.data(), int64_t(x.size()), y.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = x[i] * sigmoid(x[i]);
    CHECK(std::abs(y[i] - expected) <= 4e-7 * std::abs(expected));
  }
  const float big[] = {-1e30f, -200.0f, 200.0f, 1e30f};
  silu_mul(m.kernels, m.one, big, ones.data(), 4, y.data());
  CHECK(std::abs(y[1]) < 1e-30f && y[2] == 200.0f && y[3] == 1e30f);
}

void routing_matches(Machine& m) {
  for (int round = 0; round < 30; ++round) {
    const int64_t rows = pick(1, 4), experts = pick(1, 300),
                  k = pick(1, std::min<int64_t>(experts, 10));
    Floats logits = normal(rows * experts, 2.0f);
    for (float& v : logits) v = std::round(v * 8.0f) / 8.0f;  // so that there are ties
    std::vector<int32_t> ids(size_t(rows * k));
    Floats weights(size_t(rows * k));
    const bool renormalise = round % 2;
    route(m.kernels, m.three, logits.data(), rows, experts, k, renormalise, ids.data(),
          weights.data());
    for (int64_t r = 0; r < rows; ++r) {
      const float* x = logits.data() + r * experts;
      std::vector<int32_t> order(static_cast<size_t>(experts));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] > x[b]; });
      double total = 0.0;
      for (int64_t e = 0; e < (renormalise ? k : experts); ++e)
        total += std::exp(double(x[order[e]]));
      for (int64_t i = 0; i < k; ++i) {
        const double expected = std::exp(double(x[order[i]])) / total;
        CHECK(ids[r * k + i] == order[i]);
        CHECK(std::abs(weights[r * k + i] - expected) < 1e-6 * expected);
      }
    }
  }
}

void routing_survives_numbers_that_are_none(Machine& m) {
  const float nan = std::numeric_limits<float>::quiet_NaN(),
              inf = std::numeric_limits<float>::infinity();
  const Floats logits = {nan, 1.0f, nan, 2.0f, nan, nan, -inf, nan, inf, inf, 0.0f, nan};
  std::vector<int32_t> ids(9);
  Floats weights(9);
  route(m.kernels, m.one, logits.data(), 3, 4, 3, true, ids.data(), weights.data());
  CHECK(ids[0] == 3 && ids[1] == 1 && ids[2] == 0);
  for (int32_t id : ids) CHECK(id >= 0 && id < 4);
}

struct AttentionCase {
  Attention p;
  Floats q, k, v, q_norm, k_norm, cos, sin, k_cache, v_cache;
};

AttentionCase attention_case(int64_t tokens, int64_t start, int64_t kv_heads, int64_t group,
                             int64_t head_dim, bool gated, bool norms) {
  AttentionCase c;
  Attention& p = c.p;
  p.tokens = tokens;
  p.start = start;
  p.kv_heads = kv_heads;
  p.heads = kv_heads * group;
  p.head_dim = head_dim;
  p.rotary = 2 * pick(0, head_dim / 2);
  p.scale = 1.0f / std::sqrt(float(head_dim));
  p.gated = gated;
  c.q = normal(tokens * p.heads * head_dim * (gated ? 2 : 1));
  c.k = normal(tokens * kv_heads * head_dim);
  c.v = normal(tokens * kv_heads * head_dim);
  c.q_norm = normal(head_dim);
  c.k_norm = normal(head_dim);
  const Floats angle = normal(tokens * p.rotary / 2, 3.0f);
  for (float a : angle) {
    c.cos.push_back(std::cos(a));
    c.sin.push_back(std::sin(a));
  }
  c.k_cache = normal((start + tokens) * kv_heads * head_dim);
  c.v_cache = normal((start + tokens) * kv_heads * head_dim);
  if (norms) {
    p.q_norm = c.q_norm.data();
    p.k_norm = c.k_norm.data();
  }
  p.q = c.q.data();
  p.k = c.k.data();
  p.v = c.v.data();
  p.cos = c.cos.data();
  p.sin = c.sin.data();
  return c;
}

Doubles naive_norm_rotate(const Attention& p, const float* x, const float* w, int64_t t) {
  const int64_t half = p.rotary / 2;
  Doubles y(x, x + p.head_dim), z;
  double squares = 0.0;
  for (double v : y) squares += v * v;
  for (int64_t i = 0; w && i < p.head_dim; ++i) {
    y[i] *= w[i] / std::sqrt(squares / double(p.head_dim) + p.eps);
  }
  z = y;
  for (int64_t i = 0; i < half; ++i) {
    const double cos = p.cos[t * half + i], sin = p.sin[t * half + i];
    z[i] = y[i] * cos - y[i + half] * sin;
    z[i + half] = y[i + half] * cos + y[i] * sin;
  }
  return z;
}

Doubles naive_attention(const AttentionCase& c, Doubles& keys, Doubles& values) {
  const Attention& p = c.p;
  const int64_t n = p.head_dim, row = p.kv_heads * n, step = p.gated ? 2 * n : n;
  keys.assign(c.k_cache.begin(), c.k_cache.end());
  values.assign(c.v_cache.begin(), c.v_cache.end());
  Doubles y(size_t(p.tokens * p.heads * n));
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      const Doubles key = naive_norm_rotate(p, p.k + t * row + h * n, p.k_norm, t);
      std::copy(key.begin(), key.end(), keys.begin() + (p.start + t) * row + h * n);
      std::copy_n(p.v + t * row + h * n, n, values.begin() + (p.start + t) * row + h * n);
    }
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t at = (t * p.heads + h) * n, kv = h / (p.heads / p.kv_heads) * n;
      const float* from = p.q + (t * p.heads + h) * step;
      const Doubles query = naive_norm_rotate(p, from, p.q_norm, t);
      Doubles weights(size_t(p.start + t + 1));
      double total = 0.0;
      for (size_t j = 0; j < weights.size(); ++j) {
        const double* key = keys.data() + int64_t(j) * row + kv;
        weights[j] = std::exp(p.scale * std::inner_product(query.begin(), query.end(), key, 0.0));
        total += weights[j];
      }
      for (size_t j = 0; j < weights.size(); ++j) {
        for (int64_t i = 0; i < n; ++i) {
          y[at + i] += weights[j] / total * values[int64_t(j) * row + kv + i];
        }
      }
      for (int64_t i = 0; p.gated && i < n; ++i) y[at + i] *= sigmoid(from[n + i]);
    }
  }
  return y;
}

void check_attention(Machine& m, const AttentionCase& c) {
  Doubles keys, values;
  const Doubles expected = naive_attention(c, keys, values);
  Floats first;
  for (ThreadPool* pool : {&m.one, &m.three}) {
    Attention p = c.p;
    Floats k_cache = c.k_cache, v_cache = c.v_cache, y(expected.size());
    p.k_cache = k_cache.data();
    p.v_cache = v_cache.data();
    attention(m.kernels, *pool, m.scratch, p, y.data());
    CHECK(error(y, expected) < 1e-5);
    CHECK(error(k_cache, keys) < 1e-6);
    CHECK(error(v_cache, values) == 0.0);
    CHECK(first.empty() || same_bits(first, y));
    first = y;
  }
}

void attention_matches(Machine& m) {
  for (int round = 0; round < 24; ++round) {
    check_attention(m, attention_case(pick(1, 20), pick(0, 90), pick(1, 3), pick(1, 9), pick(1, 70),
                                      round % 2, round % 3));
  }
  check_attention(m, attention_case(1, 2000, 2, 8, 32, true, true));   // splits, narrow tile
  check_attention(m, attention_case(3, 1500, 1, 16, 20, true, true));  // splits, wide tile
  check_attention(m, attention_case(9, 700, 2, 8, 16, false, true));   // splits of two tiles
  check_attention(m, attention_case(290, 5, 1, 3, 8, true, false));    // two blocks of queries
  check_attention(m, attention_case(2, 70, 1, 70, 9, true, true));     // a group above the tile
}

struct DeltaCase {
  DeltaNet p;
  Floats qkv, z, b, a, conv_w, neg_exp_a, dt_bias, norm_w, conv_state, state;
};

DeltaCase delta_case(int64_t tokens, int64_t key_heads, int64_t group, int64_t dk, int64_t dv,
                     int64_t taps, float decay) {
  DeltaCase c;
  DeltaNet& p = c.p;
  p.tokens = tokens;
  p.key_heads = key_heads;
  p.value_heads = key_heads * group;
  p.dk = dk;
  p.dv = dv;
  p.taps = taps;
  p.channels = 2 * key_heads * dk + p.value_heads * dv;
  c.qkv = normal(tokens * p.channels);
  c.z = normal(tokens * p.value_heads * dv);
  c.b = normal(tokens * p.value_heads);
  c.a = normal(tokens * p.value_heads);
  c.conv_w = normal(p.channels * taps, 0.5f);
  c.neg_exp_a = normal(p.value_heads);
  for (float& v : c.neg_exp_a) v = -decay * std::exp(v);
  c.dt_bias = normal(p.value_heads);
  c.norm_w = normal(dv);
  c.conv_state = normal(p.channels * (taps - 1));
  c.state = normal(p.value_heads * dk * dv, 0.1f);
  p.qkv = c.qkv.data();
  p.z = c.z.data();
  p.b = c.b.data();
  p.a = c.a.data();
  p.conv_w = c.conv_w.data();
  p.neg_exp_a = c.neg_exp_a.data();
  p.dt_bias = c.dt_bias.data();
  p.norm_w = c.norm_w.data();
  return c;
}

// Convolution of the token whose inputs are appended to `history` [taps][channels].
Doubles naive_conv(const DeltaNet& p, const Doubles& history) {
  Doubles c(static_cast<size_t>(p.channels));
  for (int64_t k = 0; k < p.channels; ++k) {
    for (int64_t i = 0; i < p.taps; ++i)
      c[k] += p.conv_w[k * p.taps + i] * history[i * p.channels + k];
    c[k] *= sigmoid(c[k]);
  }
  return c;
}

void normalise(double* x, int64_t n, double scale) {
  const double squares = std::inner_product(x, x + n, x, 0.0);
  for (int64_t i = 0; i < n; ++i) x[i] *= scale / std::sqrt(squares + 1e-6);
}

// One token of one value head: s is the state [dk][dv], o the output [dv].
void naive_head(const DeltaNet& p, int64_t t, int64_t h, const double* q, const double* k,
                const double* v, double* s, double* o) {
  const int64_t at = t * p.value_heads + h;
  const double softplus = std::log1p(std::exp(double(p.a[at]) + p.dt_bias[h]));
  const double decay = std::exp(p.neg_exp_a[h] * softplus);
  double squares = 0.0;
  for (int64_t j = 0; j < p.dv; ++j) {
    double read = 0.0;
    for (int64_t i = 0; i < p.dk; ++i) read += (s[i * p.dv + j] *= decay) * k[i];
    const double u = (v[j] - read) * sigmoid(p.b[at]);
    o[j] = 0.0;
    for (int64_t i = 0; i < p.dk; ++i) o[j] += (s[i * p.dv + j] += k[i] * u) * q[i];
    squares += o[j] * o[j];
  }
  for (int64_t j = 0; j < p.dv; ++j) {
    const double z = p.z[at * p.dv + j];
    o[j] *= p.norm_w[j] / std::sqrt(squares / double(p.dv) + p.eps) * z * sigmoid(z);
  }
}

Doubles naive_delta(const DeltaCase& c, Doubles& conv_state, Doubles& state) {
  const DeltaNet& p = c.p;
  const int64_t past = p.taps - 1;
  Doubles y(size_t(p.tokens * p.value_heads * p.dv)), history(size_t(p.taps * p.channels));
  state.assign(c.state.begin(), c.state.end());
  for (int64_t k = 0; k < p.channels; ++k) {
    for (int64_t i = 0; i < past; ++i)
      history[(i + 1) * p.channels + k] = c.conv_state[k * past + i];
  }
  for (int64_t t = 0; t < p.tokens; ++t) {
    history.erase(history.begin(), history.begin() + p.channels);
    history.insert(history.end(), p.qkv + t * p.channels, p.qkv + (t + 1) * p.channels);
    Doubles x = naive_conv(p, history);
    double* keys = x.data() + p.key_heads * p.dk;
    double* values = keys + p.key_heads * p.dk;
    for (int64_t h = 0; h < p.key_heads; ++h) {
      normalise(x.data() + h * p.dk, p.dk, 1.0 / std::sqrt(double(p.dk)));
      normalise(keys + h * p.dk, p.dk, 1.0);
    }
    for (int64_t h = 0; h < p.value_heads; ++h) {
      const int64_t key = h / (p.value_heads / p.key_heads) * p.dk;
      naive_head(p, t, h, x.data() + key, keys + key, values + h * p.dv,
                 state.data() + h * p.dk * p.dv, y.data() + (t * p.value_heads + h) * p.dv);
    }
  }
  conv_state.resize(c.conv_state.size());
  for (int64_t k = 0; k < p.channels; ++k) {
    for (int64_t i = 0; i < past; ++i) conv_state[k * past + i] = history[(i + 1) * p.channels + k];
  }
  return y;
}

void check_delta(Machine& m, const DeltaCase& c) {
  Doubles conv_state, state;
  const Doubles expected = naive_delta(c, conv_state, state);
  for (int64_t chunk : {1, 3, 13, 64}) {  // the first two never leave the recurrent form
    Floats first;
    for (ThreadPool* pool : {&m.one, &m.three}) {
      DeltaNet p = c.p;
      p.chunk = chunk;
      Floats conv = c.conv_state, s = c.state, y(expected.size());
      p.conv_state = conv.data();
      p.state = s.data();
      delta_net(m.kernels, *pool, m.scratch, p, y.data());
      CHECK(error(y, expected) < 3e-5);
      CHECK(error(s, state) < 1e-5);
      CHECK(error(conv, conv_state) == 0.0);
      CHECK(first.empty() || same_bits(first, y));
      first = y;
    }
  }
}

void delta_net_matches(Machine& m) {
  for (int round = 0; round < 16; ++round) {
    check_delta(m, delta_case(pick(1, 100), pick(1, 3), pick(1, 3), pick(1, 40), pick(1, 40),
                              pick(2, 8), 1.0f));
  }
  check_delta(m, delta_case(130, 1, 2, 32, 64, 4, 1e-3f));  // remembers long
  check_delta(m, delta_case(70, 12, 2, 16, 16, 4, 1.0f));   // tasks by key head
  check_delta(m, delta_case(70, 1, 1, 16, 32, 4, 100.0f));  // forgets at once: no overflow
}

void nothing_happens_without_tokens(Machine& m) {
  AttentionCase a = attention_case(0, 3, 1, 2, 8, false, true);
  a.p.k_cache = a.k_cache.data();
  a.p.v_cache = a.v_cache.data();
  attention(m.kernels, m.one, m.scratch, a.p, nullptr);
  DeltaCase d = delta_case(0, 1, 1, 4, 4, 4, 1.0f);
  const Floats before = d.state;
  d.p.conv_state = d.conv_state.data();
  d.p.state = d.state.data();
  delta_net(m.kernels, m.one, m.scratch, d.p, nullptr);
  CHECK(same_bits(before, d.state));
}

}  // namespace

int main() {
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx, Isa::neon}) {
    if (!supports(isa)) {
      CHECK_THROWS(float_kernels(isa), std::invalid_argument);
      continue;
    }
    std::fprintf(stderr, "-- %s\n", name(isa));
    Machine m(float_kernels(isa));
    RUN(elementwise_ops_match(m));
    RUN(exponential_is_accurate(m));
    RUN(routing_matches(m));
    RUN(routing_survives_numbers_that_are_none(m));
    RUN(attention_matches(m));
    RUN(delta_net_matches(m));
    RUN(nothing_happens_without_tokens(m));
  }
  return 0;
}
