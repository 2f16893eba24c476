// The gated delta rule, token by token and by chunks. See float_kernels.inl.

constexpr int64_t kConvChannels = 64;  // worked on together

// [n][taps] -> [taps][kConvChannels]
template <int Taps>
HEADGATE_INLINE void by_tap(const float* from, int64_t n, float* to) {
  for (int64_t c = 0; c < n; ++c) {
    for (int i = 0; i < Taps; ++i) to[i * kConvChannels + c] = from[c * Taps + i];
  }
}

void by_tap(const float* from, int64_t n, int64_t taps, float* to) {
  if (taps == 4 && n == kConvChannels) return by_tap<4>(from, kConvChannels, to);
  if (taps == 3 && n == kConvChannels) return by_tap<3>(from, kConvChannels, to);
  for (int64_t c = 0; c < n; ++c) {
    for (int64_t i = 0; i < taps; ++i) to[i * kConvChannels + c] = from[c * taps + i];
  }
}

// One token: rows are the inputs, oldest first. Taps is 0 if not known.
template <int Taps>
HEADGATE_INLINE void conv_token(const float* const* rows, const float* weights, int64_t taps,
                                int64_t n, float* out) {
  for (int64_t k = 0; k < n; k += kLanes) {
    Vec acc{};
    for (int64_t i = 0; i < (Taps ? Taps : taps); ++i) {
      acc += load_some(rows[i] + k, n - k) * load_some(weights + i * kConvChannels + k, n - k);
    }
    store_some(out + k, silu(acc), n - k);
  }
}

void conv_channels(const DeltaNet& p, const float* x, int64_t tokens, int64_t channel, int64_t n,
                   float* c) {
  const int64_t past = p.taps - 1;
  float weights[8 * kConvChannels], history[7 * kConvChannels];
  by_tap(p.conv_w + channel * p.taps, n, p.taps, weights);
  by_tap(p.conv_state + channel * past, n, past, history);
  const float* rows[8] = {};
  for (int64_t i = 0; i < past; ++i) rows[i + 1] = history + i * kConvChannels;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < past; ++i) rows[i] = rows[i + 1];
    rows[past] = x + t * p.channels + channel;
    float* out = c + t * p.channels + channel;
    if (p.taps == 4 && n == kConvChannels) {
      conv_token<4>(rows, weights, 4, kConvChannels, out);
    } else {
      conv_token<0>(rows, weights, p.taps, n, out);
    }
  }
  float* state = p.conv_state + channel * past;  // rows[1..] hold what the next token needs
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t i = 0; i < past; ++i) state[k * past + i] = rows[i + 1][k];
  }
}

void delta_conv(const DeltaNet& p, int64_t first, int64_t tokens, int64_t begin, int64_t end,
                float* c) {
  for (int64_t channel = begin; channel < end; channel += kConvChannels) {
    conv_channels(p, p.qkv + first * p.channels, tokens, channel,
                  least(end - channel, kConvChannels), c);
  }
}

// Work area of a block. Row strides are padded to whole vectors.
struct DeltaWork {
  float* qk;          // [2 tokens][dk] queries, then keys, normalised
  float* keys;        // [dk][tokens] keys, transposed
  float* qkk;         // [2 tokens][tokens] queries times keys, keys times keys
  float* mixed;       // [2 tokens][tokens] the same with decays (and -beta), lower triangles
  float* rows;        // [2 tokens][dv] outputs, then updates
  float* beta;        // [tokens]
  float* g;           // [tokens] log decay of each token, or its cumulative sum
  float* decay;       // [tokens]
  int64_t dk, dv, n;  // strides
};

DeltaWork divide(const DeltaNet& p, int64_t tokens, float* work) {
  DeltaWork w{};
  w.dk = padded(p.dk);
  w.dv = padded(p.dv);
  w.n = padded(tokens);
  w.qk = work;
  w.keys = w.qk + 2 * tokens * w.dk;
  w.qkk = w.keys + p.dk * w.n;
  w.mixed = w.qkk + 2 * tokens * w.n;
  w.rows = w.mixed + 2 * tokens * w.n;
  w.beta = w.rows + 2 * tokens * w.dv;
  w.g = w.beta + w.n;
  w.decay = w.g + w.n;
  return w;
}

int64_t delta_work_floats(const DeltaNet& p, int64_t tokens) {
  const DeltaWork w = divide(p, tokens, nullptr);
  return 2 * tokens * (w.dk + w.dv + 2 * w.n) + (p.dk + 3) * w.n;
}

HEADGATE_INLINE void l2_normalise(const float* x, int64_t n, float scale, float* y) {
  const float factor = scale / __builtin_sqrtf(dot(x, x, n) + 1e-6f);
  for (int64_t i = 0; i < n; i += kLanes) {
    store_some(y + i, load_some(x + i, n - i) * factor, n - i);
  }
}

// Queries (with the attention scale) and keys of the key head of value head h.
void load_keys(const DeltaNet& p, const DeltaWork& w, int64_t tokens, const float* c, int64_t h) {
  const int64_t head = h / (p.value_heads / p.key_heads);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(p.dk));
  for (int64_t t = 0; t < tokens; ++t) {
    const float* q = c + t * p.channels + head * p.dk;
    l2_normalise(q, p.dk, scale, w.qk + t * w.dk);
    l2_normalise(q + p.key_heads * p.dk, p.dk, 1.0f, w.qk + (tokens + t) * w.dk);
  }
}

// beta = sigmoid(b) and g = -exp(A_log) softplus(a + dt_bias) of value head h.
void load_gates(const DeltaNet& p, const DeltaWork& w, int64_t first, int64_t tokens, int64_t h) {
  for (int64_t t = 0; t < w.n; ++t) {
    const int64_t at = (first + t) * p.value_heads + h;
    w.beta[t] = t < tokens ? p.b[at] : 0.0f;
    w.g[t] = t < tokens ? p.a[at] : 0.0f;
  }
  for (int64_t t = 0; t < w.n; t += kLanes) {
    store(w.beta + t, sigmoid(load(w.beta + t)));
    store(w.g + t, softplus(load(w.g + t) + p.dt_bias[h]) * p.neg_exp_a[h]);
  }
}

HEADGATE_INLINE const float* values(const DeltaNet& p, const float* c, int64_t t, int64_t h) {
  return c + t * p.channels + 2 * p.key_heads * p.dk + h * p.dv;
}

// y = rms_norm(o) * silu(z) for the tokens of a block.
void gated_norm(const DeltaNet& p, const DeltaWork& w, int64_t first, int64_t tokens, int64_t h,
                float* y) {
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t at = ((first + t) * p.value_heads + h) * p.dv;
    const float* o = w.rows + t * w.dv;
    const float scale = inverse_rms(o, p.dv, p.eps);
    for (int64_t i = 0; i < p.dv; i += kLanes) {
      const int64_t n = p.dv - i;
      const Vec normed = load_some(o + i, n) * scale * load_some(p.norm_w + i, n);
      store_some(y + at + i, normed * silu(load_some(p.z + at + i, n)), n);
    }
  }
}

// Columns of the state that are updated for all tokens of the block before the next
// ones: 128 rows of them stay in the first-level cache.
constexpr int kStepVecs = 4;

// One token and V vectors of columns, or `part` < kLanes columns:
//   S <- e S;  u = beta (v - S^T k);  S <- S + k u^T;  o = S^T q
template <int V, bool Part>
HEADGATE_INLINE void step_columns(int64_t rows, int64_t stride, int64_t part, float* state,
                                  const float* q, const float* k, const float* v, float e,
                                  float beta, float* o) {
  Vec u[2][V], out[V];
#pragma GCC unroll 16
  for (int j = 0; j < V; ++j) u[0][j] = u[1][j] = out[j] = Vec{};
  for (int64_t i = 0; i + 1 < rows; i += 2) {  // two sums hide the latency of the adds
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) {
      const float* s = state + i * stride + j * kLanes;
      u[0][j] += (Part ? load_part(s, part) : load(s)) * k[i];
      u[1][j] += (Part ? load_part(s + stride, part) : load(s + stride)) * k[i + 1];
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < V; ++j) {
    if (rows % 2) {
      const float* s = state + (rows - 1) * stride + j * kLanes;
      u[0][j] += (Part ? load_part(s, part) : load(s)) * k[rows - 1];
    }
    const Vec value = Part ? load_part(v, part) : load(v + j * kLanes);
    u[0][j] = (value - (u[0][j] + u[1][j]) * e) * beta;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const Vec key = splat(k[i]), query = splat(q[i]);
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) {
      float* s = state + i * stride + j * kLanes;
      const Vec next = (Part ? load_part(s, part) : load(s)) * e + u[0][j] * key;
      out[j] += next * query;
      if (Part) {
        store_part(s, next, part);
      } else {
        store(s, next);
      }
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < V; ++j) store(o + j * kLanes, out[j]);  // rows of o are padded
}

template <int V, bool Part>
void steps_columns(const DeltaNet& p, const DeltaWork& w, int64_t tokens, const float* c, int64_t h,
                   int64_t column) {
  float* state = p.state + h * p.dk * p.dv + column;
  for (int64_t t = 0; t < tokens; ++t) {
    step_columns<V, Part>(p.dk, p.dv, p.dv - column, state, w.qk + t * w.dk,
                          w.qk + (tokens + t) * w.dk, values(p, c, t, h) + column, w.decay[t],
                          w.beta[t], w.rows + t * w.dv + column);
  }
}

void delta_steps(const DeltaNet& p, int64_t first, int64_t tokens, const float* c, int64_t begin,
                 int64_t end, float* y, float* work) {
  const DeltaWork w = divide(p, tokens, work);
  load_keys(p, w, tokens, c, begin);
  for (int64_t h = begin; h < end; ++h) {
    load_gates(p, w, first, tokens, h);
    for (int64_t t = 0; t < w.n; t += kLanes) store(w.decay + t, exp(load(w.g + t)));
    int64_t i = 0;
    for (; i + kStepVecs * kLanes <= p.dv; i += kStepVecs * kLanes) {
      steps_columns<kStepVecs, false>(p, w, tokens, c, h, i);
    }
    for (; i + kLanes <= p.dv; i += kLanes) steps_columns<1, false>(p, w, tokens, c, h, i);
    if (i < p.dv) steps_columns<1, true>(p, w, tokens, c, h, i);
    gated_norm(p, w, first, tokens, h, y);
  }
}

constexpr int64_t kSolveRows = 8;  // height of the blocks that triangles are cut into

// mixed = queries times keys with decays D, and -beta keys times keys with decays:
// the lower triangles, with and without the diagonal. D_ij = exp(G_i - G_j), j <= i.
void mix(const DeltaWork& w, int64_t tokens) {
  for (int64_t i = 0; i < tokens; ++i) {
    const float* qk = w.qkk + i * w.n;
    const float* kk = w.qkk + (tokens + i) * w.n;
    float* attend = w.mixed + i * w.n;
    float* update = w.mixed + (tokens + i) * w.n;
    for (int64_t j = 0; j <= i; j += kLanes) {
      Vec d = w.g[i] - load(w.g + j);
      d = exp(d > Vec{} ? Vec{} : d);  // above the diagonal, where it could overflow
      store(attend + j, load(qk + j) * d);
      store(update + j, load(kk + j) * d * -w.beta[i]);
    }
    const int64_t stop = least((i / kSolveRows + 1) * kSolveRows, w.n);  // as far as is read
    update[i] = 0.0f;
    for (int64_t j = i + 1; j < stop; ++j) attend[j] = update[j] = 0.0f;
  }
}

// Solves (I + A) X = R in place by blocks of rows; `minus_a` is -A, strictly lower.
void solve(const float* minus_a, int64_t stride, int64_t n, int64_t columns, float* x) {
  for (int64_t i = 0; i < n; i += kSolveRows) {
    const int64_t stop = least(i + kSolveRows, n);
    float* to = x + i * columns;
    product({minus_a + i * stride, stride, 1, x, columns, to, columns, 1.0f}, stop - i, columns, i);
    for (int64_t r = i + 1; r < stop; ++r) {
      product({minus_a + r * stride + i, stride, 1, to, columns, x + r * columns, columns, 1.0f}, 1,
              columns, r - i);
    }
  }
}

// One value head of a chunk, with keys and their products in place. With G the
// cumulative sum of g inside the chunk (https://arxiv.org/abs/2412.06464, section 3.3):
//   (I + A) U = diag(beta) (V - diag(exp(G)) K S);   A = mixed keys, strictly lower
//   O = diag(exp(G)) Q S + (mixed queries) U
//   S <- exp(G_n) S + (diag(exp(G_n - G)) K)^T U
// Every exponent is a sum of g <= 0, so nothing overflows.
void chunk_head(const DeltaNet& p, const DeltaWork& w, int64_t tokens, const float* c, int64_t h) {
  float* state = p.state + h * p.dk * p.dv;
  float* updates = w.rows + tokens * w.dv;
  for (int64_t t = 1; t < tokens; ++t) w.g[t] += w.g[t - 1];
  for (int64_t t = 0; t < w.n; t += kLanes) store(w.decay + t, exp(load(w.g + t)));
  mix(w, tokens);
  product({w.qk, w.dk, 1, state, p.dv, w.rows, w.dv, 0.0f}, 2 * tokens, p.dv, p.dk);
  for (int64_t t = 0; t < tokens; ++t) {
    const float* v = values(p, c, t, h);
    for (int64_t i = 0; i < p.dv; i += kLanes) {
      float* o = w.rows + t * w.dv + i;
      float* u = updates + t * w.dv + i;
      store(o, load(o) * w.decay[t]);
      store(u, (load_some(v + i, p.dv - i) - load(u) * w.decay[t]) * w.beta[t]);
    }
  }
  solve(w.mixed + tokens * w.n, w.n, tokens, w.dv, updates);
  for (int64_t t = 0; t < tokens; t += kSolveRows) {
    const int64_t rows = least(tokens - t, kSolveRows);
    product({w.mixed + t * w.n, w.n, 1, updates, w.dv, w.rows + t * w.dv, w.dv, 1.0f}, rows, w.dv,
            t + rows);
  }
  const float last = w.g[tokens - 1];
  for (int64_t t = 0; t < tokens; ++t) {
    const float factor = exp(last - w.g[t]);
    float* u = updates + t * w.dv;
    for (int64_t i = 0; i < w.dv; i += kLanes) store(u + i, load(u + i) * factor);
  }
  product({w.qk + tokens * w.dk, 1, w.dk, updates, w.dv, state, p.dv, exp(last)}, p.dk, p.dv,
          tokens);
}

void delta_chunk(const DeltaNet& p, int64_t first, int64_t tokens, const float* c, int64_t begin,
                 int64_t end, float* y, float* work) {
  const DeltaWork w = divide(p, tokens, work);
  load_keys(p, w, tokens, c, begin);
  for (int64_t i = 0; i < p.dk; ++i) {
    for (int64_t t = 0; t < w.n; ++t) {
      w.keys[i * w.n + t] = t < tokens ? w.qk[(tokens + t) * w.dk + i] : 0.0f;
    }
  }
  product({w.qk, w.dk, 1, w.keys, w.n, w.qkk, w.n, 0.0f}, 2 * tokens, w.n, p.dk);
  for (int64_t h = begin; h < end; ++h) {
    load_gates(p, w, first, tokens, h);
    chunk_head(p, w, tokens, c, h);
    gated_norm(p, w, first, tokens, h, y);
  }
}
