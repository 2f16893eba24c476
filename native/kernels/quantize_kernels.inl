// The search of affine scales for every instruction set, written with the compiler's
// generic vectors. Each quantize_<isa>.cpp sets HEADGATE_QUANTIZE_LANES, is compiled
// with its own flags, and includes this file once; as in float_kernels.inl, nothing
// here has external linkage.
//
// A lane is a group: sums run over a group in its order, whatever the vector width.
// With that, and without contraction of products and sums (-ffp-contract=off), every
// instruction set gives the bits of the reference, src/headgate/quant/affine.py.

#include <cstddef>

#include "kernels/quantize_kernels.h"

namespace headgate::kernels {
namespace {

#define HEADGATE_INLINE static inline __attribute__((always_inline))

constexpr int kLanes = HEADGATE_QUANTIZE_LANES;
constexpr int kMaxGroup = 128;
constexpr float kTiny = 1e-12f;
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));

HEADGATE_INLINE Vec splat(float x) { return x - Vec{}; }
HEADGATE_INLINE Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
HEADGATE_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }  // b if a is NaN

HEADGATE_INLINE Vec round_bf16(Vec x) {
  const Bits word = (Bits)x;
  return (Vec)((word + 0x7FFFu + ((word >> 16) & 1u)) & 0xFFFF0000u);
}

// kLanes groups, transposed.
struct Tile {
  Vec w[kMaxGroup];
  Vec centred[kMaxGroup];  // w - mean
  Vec low, high, mean;
  int size;
};

// Where the search of a precision starts, as in the reference.
struct Start {
  float shrinks[3];
  int rounds;
};
constexpr Start start_of(int bits) {
  return bits == 2   ? Start{{0.6f, 0.75f, 0.9f}, 4}
         : bits == 3 ? Start{{0.7f, 0.85f, 1.0f}, 4}
         : bits == 4 ? Start{{0.8f, 0.9f, 1.0f}, 4}
                     : Start{{1.0f, 1.025f, 1.05f}, 2};
}

template <int kBits, bool kNested>
struct Search {
  static constexpr float kTop = (1 << kBits) - 1;
  static constexpr float kMiddle = kTop * 0.5f;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23

  struct Scale {
    Vec inverse, bias, zero, top;
  };

  HEADGATE_INLINE Scale scale_of(Vec s, Vec b) {
    Scale scale{s > 0.0f ? 1.0f / s : Vec{}, b, Vec{}, splat(kTop)};
    // GCC takes comparisons for a minimum or maximum only if neither side is known.
    asm("" : "+m"(scale.zero), "+m"(scale.top));
    return scale;
  }

  // A code in the low bits: adding the constant rounds to nearest even.
  HEADGATE_INLINE Vec assign(Vec w, const Scale& scale) {
    return smaller(larger((w - scale.bias) * scale.inverse, scale.zero), scale.top) + kMagic;
  }

  // body(level - kMiddle, weight) for each precision that counts, finest first.
  // Weights are 4^p, relative to the finest. A cell's middle is its code with a one
  // and zeros instead of the bits that are not read, less a half.
  template <class Body>
  HEADGATE_INLINE void each_level(Vec code, Body body) {
    constexpr float kOffset = kMagic + (1 << (kBits - 1));
    body((code - kOffset) + 0.5f, 1.0f);
    if constexpr (kNested && kBits > 4) coarse<4>(code, kOffset, body);
    if constexpr (kNested && kBits > 3) coarse<3>(code, kOffset, body);
    if constexpr (kNested && kBits > 2) coarse<2>(code, kOffset, body);
  }

  template <int kUsed, class Body>
  HEADGATE_INLINE void coarse(Vec code, float offset, Body body) {
    constexpr uint32_t kStep = 1u << (kBits - kUsed);
    body((Vec)(((Bits)code & ~(kStep - 1)) | (kStep / 2)) - offset,
         1.0f / static_cast<float>(kStep * kStep));
  }

  static constexpr float total_weight() {
    float total = 1.0f;
    for (int p = 2; kNested && p < kBits && p <= 4; ++p) {
      total += 1.0f / static_cast<float>(1 << 2 * (kBits - p));
    }
    return total;
  }

  // Codes for (s, b), then least squares for these codes: a new s, and the mean level,
  // which determines b. Here b is relative to the mean of the group.
  HEADGATE_INLINE void fit(const Tile& t, Vec& s, Vec b, Vec& level_mean) {
    const Scale scale = scale_of(s, b);
    Vec levels{}, squares{}, products{};
    for (int i = 0; i < t.size; ++i) {
      Vec level{}, square{};
      each_level(assign(t.centred[i], scale), [&](Vec l, float weight) {
        const Vec weighted = weight == 1.0f ? l : l * weight;
        level = weight == 1.0f ? weighted : level + weighted;
        square = weight == 1.0f ? weighted * l : square + weighted * l;
      });
      levels += level;
      squares += square;
      products += level * t.centred[i];
    }
    const float share = 1.0f / (static_cast<float>(t.size) * total_weight());
    level_mean = levels * share;
    const Vec variance = squares * share - level_mean * level_mean;
    const Vec fitted = products * share / variance;
    s = larger((variance > 1e-4f) & (products > 0.0f) ? fitted : s, splat(kTiny));
    level_mean += kMiddle;
  }

  HEADGATE_INLINE Vec error(const Tile& t, Vec s, Vec b) {
    const Scale scale = scale_of(s, b);
    const Vec middle = s * kMiddle;
    Vec total{};
    for (int i = 0; i < t.size; ++i) {
      const Vec w = t.w[i] - b - middle;
      each_level(assign(t.w[i], scale), [&](Vec l, float weight) {
        const Vec off = w - s * l;
        total += weight == 1.0f ? off * off : off * off * weight;
      });
    }
    return total;
  }

  // The best s and b of each lane, representable in bfloat16; zero where no start has
  // a finite error (weights near the end of the float range).
  static void run(const Tile& t, Vec& best_s, Vec& best_b) {
    constexpr Start kStart = start_of(kBits);
    Vec best = splat(__builtin_inff());
    best_s = best_b = Vec{};
    for (float shrink : kStart.shrinks) {
      Vec s = larger((t.high - t.low) * (shrink / kTop), splat(kTiny));
      Vec b = (t.high * 0.5f + t.low * 0.5f) - t.mean - s * kMiddle;
      Vec level_mean{};
      for (int round = 0; round < kStart.rounds; ++round) {
        fit(t, s, b, level_mean);
        b = -(s * level_mean);
      }
      s = round_bf16(s);
      b = round_bf16(t.mean - s * level_mean);
      const Vec off = error(t, s, b);
      best_s = off < best ? s : best_s;
      best_b = off < best ? b : best_b;
      best = smaller(off, best);
    }
  }

  // Four codes of a group to a word: words [size / 4] of vectors.
  static void codes(const Tile& t, Vec s, Vec b, Bits* words) {
    const Scale scale = scale_of(s, b);
    for (int i = 0; i < t.size; i += 4) {
      Bits word{};
      for (int j = 0; j < 4; ++j) {
        word |= ((Bits)assign(t.w[i + j], scale) & 0xFFu) << (8 * j);
      }
      words[i / 4] = word;
    }
  }

  // `count` <= kLanes groups.
  static void quantize(Tile& t, int count, uint8_t* out, uint16_t* scales, uint16_t* biases) {
    Vec s, b;
    run(t, s, b);
    Bits words[kMaxGroup / 4];
    codes(t, s, b, words);
    for (int lane = 0; lane < count; ++lane) {
      for (int i = 0; i < t.size / 4; ++i) {
        const uint32_t word = words[i][lane];
        __builtin_memcpy(out + lane * t.size + 4 * i, &word, 4);
      }
      scales[lane] = static_cast<uint16_t>(((Bits)s)[lane] >> 16);
      biases[lane] = static_cast<uint16_t>(((Bits)b)[lane] >> 16);
    }
  }
};

// Lanes beyond `count` repeat the last group.
void load(Tile& t, const float* weights, int count) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const float* from = weights + (lane < count ? lane : count - 1) * t.size;
    for (int i = 0; i < t.size; ++i) t.w[i][lane] = from[i];
  }
  Vec sum{};
  t.low = t.high = t.w[0];
  for (int i = 0; i < t.size; ++i) {
    t.low = smaller(t.w[i], t.low);
    t.high = larger(t.w[i], t.high);
    sum += t.w[i];
  }
  t.mean = sum / static_cast<float>(t.size);
  for (int i = 0; i < t.size; ++i) t.centred[i] = t.w[i] - t.mean;
}

template <int kBits>
void quantize_bits(Tile& t, int count, bool nested, uint8_t* codes, uint16_t* scales,
                   uint16_t* biases) {
  if (nested) {
    Search<kBits, true>::quantize(t, count, codes, scales, biases);
  } else {
    Search<kBits, false>::quantize(t, count, codes, scales, biases);
  }
}

void quantize_groups(const float* weights, int64_t groups, int size, int bits, bool nested,
                     uint8_t* codes, uint16_t* scales, uint16_t* biases) {
  const auto quantize = bits == 2   ? quantize_bits<2>
                        : bits == 3 ? quantize_bits<3>
                        : bits == 4 ? quantize_bits<4>
                                    : quantize_bits<8>;
  Tile t;
  t.size = size;
  for (int64_t n = 0; n < groups; n += kLanes) {
    const int count = static_cast<int>(groups - n < kLanes ? groups - n : kLanes);
    load(t, weights + n * size, count);
    quantize(t, count, nested, codes + n * size, scales + n, biases + n);
  }
}

}  // namespace
}  // namespace headgate::kernels
