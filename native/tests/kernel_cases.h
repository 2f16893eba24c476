// Random inputs for the kernel tests, and what their results should be.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/linear.h"

namespace headgate::kernels::testing {

using Random = std::mt19937_64;

inline int64_t pick(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

inline double uniform(Random& random, double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(random);
}

// An array whose last element is followed by a page that cannot be read: vector loads
// with masks are invisible to the sanitizers.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    size_ = (bytes + page - 1) / page * page + page;
    void* base = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    base_ = static_cast<std::byte*>(base);
    CHECK(mprotect(base_ + size_ - page, page, PROT_NONE) == 0);
    data_ = reinterpret_cast<T*>(base_ + size_ - page - bytes);
  }
  Guarded(Guarded&& other) noexcept
      : base_(other.base_), size_(other.size_), data_(other.data_), count_(other.count_) {
    other.base_ = nullptr;
  }
  ~Guarded() {
    if (base_) munmap(base_, size_);
  }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return count_; }
  T* begin() const { return data_; }
  T* end() const { return data_ + count_; }

 private:
  std::byte* base_;
  size_t size_;
  T* data_;
  int64_t count_;
};

inline double value_of_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline double value_of_f16(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double size =
      exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return half & 0x8000 ? -size : size;
}

// Of either sign and, for f16, sometimes subnormal.
inline uint16_t random_half(Random& random, bool bf16) {
  const auto sign = static_cast<uint16_t>(pick(random, 0, 1) << 15);
  if (bf16) {
    return static_cast<uint16_t>(sign | pick(random, 120, 127) << 7 | pick(random, 0, 127));
  }
  const int64_t exponent = pick(random, 0, 9) == 0 ? 0 : pick(random, 8, 15);
  return static_cast<uint16_t>(sign | exponent << 10 | pick(random, 0, 1023));
}

inline Guarded<float> random_floats(Random& random, int64_t count) {
  Guarded<float> values(count);
  for (float& v : values) v = static_cast<float>(uniform(random, -2, 2));
  return values;
}

// Results are compared relative to the sum of the terms' sizes.
struct Expected {
  double value = 0, size = 0;
  void add(double w, double x) {
    value += w * x;
    size += std::abs(w * x);
  }
  bool matches(float result, double tolerance = 1e-5) const {
    return std::abs(result - value) <= tolerance * size + 1e-30;
  }
};

// A quantised matrix, its planes packed a bit at a time as quant.h says.
struct QuantCase {
  QuantMatrix matrix;
  std::vector<uint8_t> codes;  // [rows][padded], of the stored bits
  Guarded<uint16_t> scales, biases;
  Guarded<uint8_t> q2, q3, q4, q8;

  static int64_t blocks(int64_t rows, int64_t cols, int group) {
    QuantMatrix shape;
    shape.cols = cols;
    shape.group = group;
    return rows * shape.padded() / 64;
  }

  QuantCase(Random& random, int64_t rows, int64_t cols, int group, int stored, int used, bool bf16)
      : scales(blocks(rows, cols, group) * 64 / group),
        biases(scales.size()),
        q2(blocks(rows, cols, group) * 16),
        q3(used >= 3 ? blocks(rows, cols, group) * 8 : 0),
        q4(used >= 4 ? blocks(rows, cols, group) * 8 : 0),
        q8(used >= 8 ? blocks(rows, cols, group) * 32 : 0) {
    matrix = {scales.data(),
              biases.data(),
              q2.data(),
              used >= 3 ? q3.data() : nullptr,
              used >= 4 ? q4.data() : nullptr,
              used >= 8 ? q8.data() : nullptr,
              rows,
              cols,
              group,
              stored,
              used,
              bf16 ? HalfType::bf16 : HalfType::f16};
    for (uint16_t& v : scales) v = random_half(random, bf16);
    for (uint16_t& v : biases) v = random_half(random, bf16);
    const int64_t padded = matrix.padded();
    codes.resize(static_cast<size_t>(rows * padded));
    for (int64_t i = 0; i < rows * padded; ++i) {
      if (i % padded >= cols) continue;
      const auto code = static_cast<unsigned>(pick(random, 0, (1 << stored) - 1));
      codes[static_cast<size_t>(i)] = static_cast<uint8_t>(code);
      pack(i / 64, static_cast<int>(i % 64), code);
    }
  }

  void pack(int64_t block, int i, unsigned code) {
    const int b = matrix.stored_bits;
    const auto put = [](uint8_t& byte, unsigned bits, int at) {
      byte = static_cast<uint8_t>(byte | bits << at);
    };
    put(q2[block * 16 + i % 16], code >> (b - 2), i / 16 * 2);
    if (matrix.q3) put(q3[block * 8 + i / 8], code >> (b - 3) & 1, i % 8);
    if (matrix.q4) put(q4[block * 8 + i / 8], code >> (b - 4) & 1, i % 8);
    if (matrix.q8) put(q8[block * 32 + i % 32], code & 15, i / 32 * 4);
  }

  // Adds weight * x, and counts the terms s * c and b apart.
  void add(Expected& sum, int64_t row, int64_t col, double x) const {
    const auto value = matrix.half == HalfType::bf16 ? value_of_bf16 : value_of_f16;
    const int64_t at = row * matrix.padded() + col;
    const int dropped = matrix.stored_bits - matrix.used_bits;
    const double code = codes[static_cast<size_t>(at)] >> dropped;
    const double scale = value(scales[at / matrix.group]);
    const double step = 1 << dropped;
    sum.add(scale * (code * step + (step - 1) / 2), x);
    sum.add(value(biases[at / matrix.group]), x);
  }
};

// int8 activations in arrays of exactly the documented size.
struct ActivationCase {
  Guarded<int8_t> q;
  Guarded<float> scales, sums;
  Guarded<std::byte> packed;
  QuantActivations view;

  ActivationCase(const QuantKernels& kernels, const QuantMatrix& w, const float* x, int64_t tokens)
      : q(tokens * w.padded()),
        scales(tokens * w.padded() / 64),
        sums(tokens * w.padded() / w.group),
        packed(kernels.pack ? tokens * packed_bytes(w.padded(), w.group) : 0),
        view{q.data(), scales.data(), sums.data(), tokens, w.padded(), w.group} {
    const int64_t padded = w.padded(), groups = padded / w.group;
    for (int64_t t = 0; t < tokens; ++t) {
      kernels.quantize(x + t * w.cols, w.cols, padded, w.group, q.data() + t * padded,
                       scales.data() + t * padded / 64, sums.data() + t * groups);
    }
    if (!kernels.pack) return;
    kernels.pack(view, packed.data());
    view.packed = packed.data();
  }
  double at(int64_t token, int64_t col) const {
    const int64_t i = token * view.padded + col;
    return static_cast<double>(scales[i / 64]) * q[i];
  }
};

struct DenseCase {
  DenseMatrix matrix;
  std::unique_ptr<Guarded<float>> floats;
  std::unique_ptr<Guarded<uint16_t>> halves;

  DenseCase(Random& random, int64_t rows, int64_t cols, DenseType type) {
    matrix = {nullptr, rows, cols, type};
    if (type == DenseType::f32) {
      floats = std::make_unique<Guarded<float>>(random_floats(random, rows * cols));
      matrix.data = floats->data();
    } else {
      halves = std::make_unique<Guarded<uint16_t>>(rows * cols);
      for (uint16_t& v : *halves) v = random_half(random, type == DenseType::bf16);
      matrix.data = halves->data();
    }
  }
  double at(int64_t row, int64_t col) const {
    const int64_t i = row * matrix.cols + col;
    if (floats) return (*floats)[i];
    return matrix.type == DenseType::bf16 ? value_of_bf16((*halves)[i])
                                          : value_of_f16((*halves)[i]);
  }
};

}  // namespace headgate::kernels::testing
