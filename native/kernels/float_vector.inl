// Vectors of kLanes floats with the compiler's generic vector types, and the
// elementary functions on them. See float_kernels.inl.

#define HEADGATE_INLINE static inline __attribute__((always_inline))

constexpr int64_t kLanes = HEADGATE_FLOAT_LANES;
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));

HEADGATE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
HEADGATE_INLINE int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

HEADGATE_INLINE Vec splat(float x) { return x - Vec{}; }  // unlike +, keeps -0 and costs nothing

HEADGATE_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

HEADGATE_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

// The first n < kLanes floats; the others are zero.
HEADGATE_INLINE Vec load_part(const float* p, int64_t n) {
  Vec v{};
  __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}

HEADGATE_INLINE void store_part(float* p, Vec v, int64_t n) {
  __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}

// Up to kLanes of the n floats at p.
HEADGATE_INLINE Vec load_some(const float* p, int64_t n) {
  return n >= kLanes ? load(p) : load_part(p, n);
}

HEADGATE_INLINE void store_some(float* p, Vec v, int64_t n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_part(p, v, n);
  }
}

typedef float Vec4 __attribute__((vector_size(16)));

// Adds the upper half of the lanes to the lower half until four are left.
template <class V>
HEADGATE_INLINE Vec4 fold(V v) {
  if constexpr (sizeof v == 64) {
    return fold(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  } else if constexpr (sizeof v == 32) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  } else {
    return v;
  }
}

HEADGATE_INLINE float sum(Vec v) {
  const Vec4 x = fold(v);
  return (x[0] + x[2]) + (x[1] + x[3]);
}

HEADGATE_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// exp(x) with a relative error below 1.5e-7 where the result is a normal float: 0
// below, no more than exp(88.3) above, NaN for NaN. x = n ln 2 + r, |r| <= ln 2 / 2,
// and a minimax polynomial for (exp(r) - 1 - r) / r^2.
HEADGATE_INLINE Vec exp(Vec x) {
  const Vec low = splat(-87.3f), high = splat(88.3f);
  const Vec y = x > high ? high : x;   // this way round a NaN stays
  const Vec round = splat(0x1.8p23f);  // adding it leaves the integer in the low bits
  const Vec shifted = y * 0x1.715476p+0f + round;
  const Vec n = shifted - round;
  Vec r = y - n * 0x1.62e4p-1f;  // ln 2 in two parts; n times the first is exact
  r = r - n * 0x1.7f7d1cp-20f;
  Vec p = r * 1.3814466e-3f + 8.368781e-3f;
  p = p * r + 4.1668393e-2f;
  p = p * r + 1.666652e-1f;
  p = p * r + 4.9999994e-1f;
  p = p * (r * r) + r + 1.0f;
  Bits bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;  // 2^n
  Vec power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return x < low ? Vec{} : p * power;
}

HEADGATE_INLINE float exp(float x) { return exp(splat(x))[0]; }

HEADGATE_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }
HEADGATE_INLINE Vec silu(Vec x) { return x / (1.0f + exp(-x)); }

// log(1 + exp(x)) = max(x, 0) + log1p(u), u = exp(-|x|); log1p(u) = 2 artanh(s) with
// s = u / (2 + u) <= 1/3, whose series gains a decimal digit with each term.
HEADGATE_INLINE Vec softplus(Vec x) {
  const Vec zero{};
  const Vec u = exp(x > zero ? -x : x);
  const Vec s = u / (2.0f + u), t = s * s;
  Vec p = t * (1.0f / 15) + (1.0f / 13);
  p = p * t + (1.0f / 11);
  p = p * t + (1.0f / 9);
  p = p * t + (1.0f / 7);
  p = p * t + (1.0f / 5);
  p = p * t + (1.0f / 3);
  p = p * t + 1.0f;
  return (x < zero ? zero : x) + 2.0f * s * p;
}

HEADGATE_INLINE float dot(const float* x, const float* y, int64_t n) {
  Vec s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 += load(x + i) * load(y + i);
    s1 += load(x + i + kLanes) * load(y + i + kLanes);
    s2 += load(x + i + 2 * kLanes) * load(y + i + 2 * kLanes);
    s3 += load(x + i + 3 * kLanes) * load(y + i + 3 * kLanes);
  }
  for (; i < n; i += kLanes) s0 += load_some(x + i, n - i) * load_some(y + i, n - i);
  return sum((s0 + s1) + (s2 + s3));
}

// rsqrt(mean(x^2) + eps)
HEADGATE_INLINE float inverse_rms(const float* x, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(dot(x, x, n) / static_cast<float>(n) + eps);
}
