// The search of scales: the same bits on every instruction set, with any number of
// threads, and on every machine.
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/quantize.h"
#include "tests/check.h"

using namespace headgate::kernels;

namespace {

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales, biases;

  bool operator==(const Quantized&) const = default;
};

Quantized quantize(ThreadPool& pool, const std::vector<float>& weights, int size, int bits,
                   bool nested, Isa isa) {
  const size_t groups = weights.size() / static_cast<size_t>(size);
  Quantized q{std::vector<uint8_t>(weights.size()), std::vector<uint16_t>(groups),
              std::vector<uint16_t>(groups)};
  quantize_groups(pool, weights.data(), static_cast<int64_t>(groups), size, bits, nested,
                  q.codes.data(), q.scales.data(), q.biases.data(), isa);
  return q;
}

// Bell-shaped numbers that are the same on every machine, unlike those of the standard
// library's distributions.
std::vector<float> bell(int64_t n, float scale) {
  std::vector<float> x(static_cast<size_t>(n));
  uint64_t state = 1;
  for (float& v : x) {
    int32_t sum = 0;
    for (int i = 0; i < 8; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<int32_t>(state >> 48) - 32768;
    }
    v = static_cast<float>(sum) * scale / 65536.0f;
  }
  return x;
}

// Groups that are ordinary, constant, tiny, huge, and of one outlier.
std::vector<float> weights_of(int64_t groups, int size) {
  std::vector<float> x = bell(groups * size, 0.02f);
  for (int64_t n = 0; n < groups; ++n) {
    float* g = x.data() + n * size;
    for (int i = 0; i < size; ++i) {
      if (n % 11 == 2) g[i] = n % 2 ? 0.0f : 3.7f;
      if (n % 11 == 4) g[i] *= 1e-38f;
      if (n % 11 == 6) g[i] *= 1e36f;
      if (n % 11 == 8) g[i] = i % 2 ? 3e38f : -3e38f;
    }
    if (n % 11 == 10) g[n % size] = 5.0f;
  }
  return x;
}

float widened(uint16_t half) {
  const uint32_t word = uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

uint64_t add_to_hash(uint64_t hash, const void* data, size_t bytes) {  // FNV-1a
  for (size_t i = 0; i < bytes; ++i) {
    hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  }
  return hash;
}

template <class Body>
void for_each_case(Body body) {
  for (int bits : {2, 3, 4, 8}) {
    for (int size : {32, 64, 128}) {
      for (bool nested : {true, false}) body(bits, size, nested);
    }
  }
}

void every_instruction_set_gives_the_same_bits() {
  ThreadPool one(1), three(3);
  for (int64_t groups : {1, 5, 16, 300}) {
    for_each_case([&](int bits, int size, bool nested) {
      const std::vector<float> weights = weights_of(groups, size);
      const Quantized expected = quantize(one, weights, size, bits, nested, Isa::scalar);
      for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx, Isa::neon}) {
        if (!supports(isa)) continue;
        CHECK(quantize(three, weights, size, bits, nested, isa) == expected);
      }
    });
  }
}

// A store must not depend on the machine that wrote it. If this changes on purpose,
// so must REVISION in src/headgate/convert/convert.py.
void every_machine_gives_the_same_bits() {
  ThreadPool pool(1);
  uint64_t hash = 14695981039346656037u;
  for_each_case([&](int bits, int size, bool nested) {
    const Quantized q = quantize(pool, weights_of(40, size), size, bits, nested, best_isa());
    hash = add_to_hash(hash, q.codes.data(), q.codes.size());
    for (const auto* halves : {&q.scales, &q.biases}) {
      hash = add_to_hash(hash, halves->data(), halves->size() * 2);
    }
  });
  CHECK(hash == 0x1936695b4063bb19u);
}

void errors_are_those_of_a_good_uniform_quantiser() {
  ThreadPool pool(1);
  const std::vector<float> weights = bell(64 * 256, 0.02f);
  for (const auto& [bits, bound] : {std::pair{2, 0.12}, {3, 0.035}, {4, 0.01}, {8, 5e-5}}) {
    const Quantized q = quantize(pool, weights, 64, bits, false, best_isa());
    double off = 0, all = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const double w = widened(q.scales[i / 64]) * q.codes[i] + widened(q.biases[i / 64]);
      off += (w - weights[i]) * (w - weights[i]);
      all += weights[i] * weights[i];
    }
    CHECK(off < bound * all);
  }
}

void absent_instruction_sets_are_refused() {
  for (Isa isa : {Isa::avx2, Isa::avx512, Isa::amx, Isa::neon}) {
    if (supports(isa)) continue;
    ThreadPool pool(1);
    CHECK_THROWS(quantize(pool, std::vector<float>(32), 32, 4, true, isa), std::invalid_argument);
  }
}

}  // namespace

int main() {
  every_instruction_set_gives_the_same_bits();
  every_machine_gives_the_same_bits();
  errors_are_those_of_a_good_uniform_quantiser();
  absent_instruction_sets_are_refused();
}
