// Attention over a cache, one tile of queries at a time with a running softmax
// (https://arxiv.org/abs/2205.14135). See float_kernels.inl.
//
// Scores are kept transposed, [key][row], with the rows of the tile along the
// vector: keys are then read in the order of the cache, one broadcast each, and
// the softmax needs no sums across a vector. A tile that would leave most of the
// vector empty computes scores as dot products instead.

constexpr int64_t kKeyBlock = 64;
constexpr float kMasked = -__builtin_inff();

HEADGATE_INLINE int64_t tile_rows(const Attention& p, const AttentionTile& tile) {
  return tile.tokens * (p.heads / p.kv_heads);
}

// y = rotate(x * rsqrt(mean(x^2) + eps) * w). Dimensions i and i + rotary / 2 form a
// pair (https://arxiv.org/abs/2104.09864).
void norm_rotate(const Attention& p, const float* x, const float* w, int64_t token, float* y) {
  const int64_t n = p.head_dim, half = p.rotary / 2;
  const float scale = w ? inverse_rms(x, n, p.eps) : 1.0f;
  for (int64_t i = 0; i < n; ++i) y[i] = w ? x[i] * scale * w[i] : x[i];
  const float* cos = p.cos + token * half;
  const float* sin = p.sin + token * half;
  for (int64_t i = 0; i < half; ++i) {
    const float first = y[i], second = y[i + half];
    y[i] = first * cos[i] - second * sin[i];
    y[i + half] = second * cos[i] + first * sin[i];
  }
}

void attention_store(const Attention& p, int64_t begin, int64_t end) {
  const int64_t row = p.kv_heads * p.head_dim;
  for (int64_t t = begin; t < end; ++t) {
    float* keys = p.k_cache + (p.start + t) * row;
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      const int64_t at = h * p.head_dim;
      norm_rotate(p, p.k + t * row + at, p.k_norm, t, keys + at);
    }
    __builtin_memcpy(p.v_cache + (p.start + t) * row, p.v + t * row,
                     static_cast<size_t>(row) * sizeof(float));
  }
}

// Whether a tile of this height computes scores as dot products.
HEADGATE_INLINE bool narrow(int64_t rows) { return 2 * rows <= kLanes; }

HEADGATE_INLINE int64_t dot_rows(int64_t rows) {
  return (rows + kDotRows - 1) / kDotRows * kDotRows;
}

// Queries lie transposed, [head_dim][padded rows], or for a narrow tile
// [dot_rows][padded head_dim]; a buffer for one head behind.
int64_t attention_query_floats(const Attention& p, int64_t rows) {
  const int64_t width = padded(p.head_dim);
  return (narrow(rows) ? dot_rows(rows) * width : p.head_dim * padded(rows)) + width;
}

void attention_queries(const Attention& p, const AttentionTile& tile, float* queries) {
  const int64_t group = p.heads / p.kv_heads, rows = tile_rows(p, tile), ld = padded(rows);
  const int64_t head_floats = p.head_dim * (p.gated ? 2 : 1), width = padded(p.head_dim);
  const int64_t floats = attention_query_floats(p, rows) - width;
  float* one = queries + floats;
  for (int64_t i = 0; i < floats; ++i) queries[i] = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t t = tile.first + r / group, h = tile.kv_head * group + r % group;
    norm_rotate(p, p.q + (t * p.heads + h) * head_floats, p.q_norm, t, one);
    float* to = queries + (narrow(rows) ? r * width : r);
    const int64_t step = narrow(rows) ? 1 : ld;
    for (int64_t i = 0; i < p.head_dim; ++i) to[i * step] = one[i] * p.scale;
  }
}

// A partial result: output not yet divided by the sum, [padded rows][padded head_dim],
// then the largest score and the sum of exponentials of each row.
int64_t attention_part_floats(const Attention& p, int64_t rows) {
  return padded(rows) * (padded(p.head_dim) + 2);
}

int64_t attention_work_floats(const Attention&, int64_t rows) {
  return (kKeyBlock + 1) * padded(rows);
}

// Scores of keys that a row may not see yet.
void mask(const Attention& p, const AttentionTile& tile, int64_t key, int64_t keys, int64_t ld,
          float* scores) {
  const int64_t group = p.heads / p.kv_heads, first = p.start + tile.first;
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t hidden = least(key + j - first, tile.tokens) * group;
    for (int64_t r = 0; r < hidden; ++r) scores[j * ld + r] = kMasked;
  }
}

// One step of the running softmax: scores become exp(score - largest), `largest` and
// `sums` are brought up to date, and factor is what earlier sums must be scaled by.
void softmax_block(int64_t keys, int64_t ld, float* scores, float* largest, float* sums,
                   float* factor) {
  for (int64_t r = 0; r < ld; r += kLanes) {
    const Vec before = load(largest + r);
    Vec top = before;
    for (int64_t j = 0; j < keys; ++j) top = larger(load(scores + j * ld + r), top);
    // A row that has seen no key yet: exp(-inf - 0), not exp(-inf + inf).
    const Vec base = top > splat(kMasked) ? top : Vec{};
    Vec total{};
    for (int64_t j = 0; j < keys; ++j) {
      const Vec e = exp(load(scores + j * ld + r) - base);
      store(scores + j * ld + r, e);
      total += e;
    }
    const Vec scale = exp(before - base);
    store(factor + r, scale);
    store(sums + r, load(sums + r) * scale + total);
    store(largest + r, top);
  }
}

void attention_attend(const Attention& p, const AttentionTile& tile, const float* queries,
                      int64_t begin, int64_t end, float* part, float* work) {
  const int64_t rows = tile_rows(p, tile), ld = padded(rows), width = padded(p.head_dim);
  const int64_t stride = p.kv_heads * p.head_dim;
  float* largest = part + ld * width;
  float* sums = largest + ld;
  float* scores = work;
  float* factor = work + kKeyBlock * ld;
  for (int64_t i = 0; i < ld * width; ++i) part[i] = 0.0f;
  for (int64_t r = 0; r < ld; ++r) {
    largest[r] = kMasked;
    sums[r] = 0.0f;
  }
  for (int64_t i = 0; i < kKeyBlock * ld; ++i) scores[i] = 0.0f;  // dots() skips columns
  for (int64_t key = begin; key < end; key += kKeyBlock) {
    const int64_t keys = least(end - key, kKeyBlock);
    const int64_t at = key * stride + tile.kv_head * p.head_dim;
    if (narrow(rows)) {
      dots(p.k_cache + at, stride, keys, queries, width, dot_rows(rows), p.head_dim, scores, ld,
           p.v_cache + at);
    } else {
      product({p.k_cache + at, stride, 1, queries, ld, scores, ld, 0.0f}, keys, ld, p.head_dim);
    }
    if (key + keys > p.start + tile.first + 1) mask(p, tile, key, keys, ld, scores);
    softmax_block(keys, ld, scores, largest, sums, factor);
    for (int64_t r = 0; r < rows; ++r) {
      if (factor[r] == 1.0f) continue;
      float* out = part + r * width;
      for (int64_t i = 0; i < width; i += kLanes) store(out + i, load(out + i) * factor[r]);
    }
    product({scores, 1, ld, p.v_cache + at, stride, part, width, 1.0f}, rows, p.head_dim, keys);
  }
}

void attention_merge(const Attention& p, const AttentionTile& tile, float* part, int64_t parts,
                     int64_t begin, int64_t end, float* y) {
  const int64_t rows = tile_rows(p, tile), ld = padded(rows), n = p.head_dim;
  const int64_t width = padded(n), step = attention_part_floats(p, rows);
  const int64_t group = p.heads / p.kv_heads;
  for (int64_t r = begin; r < end; ++r) {
    const float* largest = part + ld * width + r;
    float top = kMasked, total = 0.0f;
    for (int64_t i = 0; i < parts; ++i) {
      top = largest[i * step] > top ? largest[i * step] : top;
    }
    float* out = part + r * width;
    for (int64_t i = 0; i < parts; ++i) {
      const float weight = exp(largest[i * step] - top);
      total += weight * largest[i * step + ld];
      const float* from = out + i * step;
      for (int64_t d = 0; d < width; d += kLanes) {
        store(out + d, load(from + d) * weight + (i ? load(out + d) : Vec{}));
      }
    }
    const int64_t t = tile.first + r / group;
    const int64_t h = t * p.heads + tile.kv_head * group + r % group;
    const float* gate = p.gated ? p.q + (2 * h + 1) * n : nullptr;
    const float inverse = 1.0f / total;
    for (int64_t d = 0; d < n; d += kLanes) {
      Vec v = load(out + d) * inverse;
      if (gate) v *= sigmoid(load_some(gate + d, n - d));
      store_some(y + h * n + d, v, n - d);
    }
  }
}
