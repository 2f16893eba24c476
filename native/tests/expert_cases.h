// Random experts and routings for the kernel tests.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernel_cases.h"
#include "kernels/expert_ffn.h"

namespace headgate::kernels::testing {

// Random records of one layout, each with no byte to spare.
struct ExpertCase {
  ExpertLayout layout;
  std::vector<Guarded<std::byte>> records;

  ExpertCase(Random& random, ExpertKind kind, int group, int stored, int used, int count) {
    layout.hidden = 150;
    layout.inter = 97;
    layout.kind = kind;
    layout.group = group;
    layout.stored_bits = stored;
    layout.used_bits = used;
    place(layout.gate, layout.inter, layout.hidden);
    place(layout.up, layout.inter, layout.hidden);
    place(layout.down, layout.hidden, layout.inter);
    for (int i = 0; i < count; ++i) records.push_back(record(random));
  }
  void place(MatrixOffsets& at, int64_t rows, int64_t cols) {
    int64_t& end = layout.prefix_bytes;
    const auto next = [&](int64_t bytes) { return (end += bytes) - bytes; };
    if (layout.kind != ExpertKind::quant) {
      at.data = next(rows * cols * 2);
      return;
    }
    const int64_t blocks = QuantCase::blocks(rows, cols, layout.group);
    at.scales = next(blocks * 64 / layout.group * 2);
    at.biases = next(blocks * 64 / layout.group * 2);
    at.q2 = next(blocks * 16);
    if (layout.used_bits >= 3) at.q3 = next(blocks * 8);
    if (layout.used_bits >= 4) at.q4 = next(blocks * 8);
    if (layout.used_bits >= 8) at.q8 = next(blocks * 32);
  }
  // Random codes; every 16-bit number a small one, as a scale or a weight would be.
  Guarded<std::byte> record(Random& random) const {
    Guarded<std::byte> bytes(layout.prefix_bytes);
    for (auto& b : bytes) b = static_cast<std::byte>(random());
    const auto halves = [&](int64_t at, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        const auto v = static_cast<uint16_t>(layout.kind == ExpertKind::f16
                                                 ? random_half(random, false)
                                                 : random_half(random, true) - (3 << 7));
        std::memcpy(bytes.data() + at + 2 * i, &v, 2);
      }
    };
    for (const auto* m : {&layout.gate, &layout.up, &layout.down}) {
      if (layout.kind == ExpertKind::quant) {
        halves(m->scales, (m->q2 - m->scales) / 2);
      } else {
        halves(m->data, layout.hidden * layout.inter);
      }
    }
    return bytes;
  }
  Matrix matrix(size_t expert, const MatrixOffsets& at, bool down = false) const {
    const int64_t rows = down ? layout.hidden : layout.inter;
    return expert_matrix(layout, at, rows, layout.hidden + layout.inter - rows,
                         records[expert].data());
  }
  // One pair by way of linear().
  std::vector<float> alone(const QuantKernels& kernels, size_t expert, const float* x,
                           bool exact) const {
    ThreadPool pool(1);
    Scratch scratch;
    const auto inter = static_cast<size_t>(layout.inter);
    std::vector<float> gate(inter), up(inter), y(static_cast<size_t>(layout.hidden));
    const std::vector<Matrix> first = {matrix(expert, layout.gate), matrix(expert, layout.up)};
    float* const out[] = {gate.data(), up.data()};
    linear(pool, kernels, scratch, x, 1, first, out, exact);
    silu_mul(gate.data(), up.data(), gate.data(), layout.inter);
    const Matrix down = matrix(expert, layout.down, true);
    float* const last[] = {y.data()};
    linear(pool, kernels, scratch, gate.data(), 1, {&down, 1}, last, exact);
    return y;
  }
};

// Which token goes to which expert and where its result goes.
struct Routing {
  std::vector<int32_t> splits = {0}, token_of, out_row;
  Routing(Random& random, size_t experts, int64_t tokens) {
    for (size_t n = 0; n < experts; ++n) {
      for (int32_t t = 0; t < tokens; ++t) {
        if (pick(random, 0, 2)) token_of.push_back(t);
      }
      if (n == 1) token_of.resize(static_cast<size_t>(splits.back()));  // an expert without work
      if (n == 2) token_of.resize(static_cast<size_t>(splits.back()) + 1, 0);
      splits.push_back(static_cast<int32_t>(token_of.size()));
    }
    for (size_t p = 0; p < token_of.size(); ++p) out_row.push_back(static_cast<int32_t>(p));
    std::shuffle(out_row.begin(), out_row.end(), random);
  }
};

}  // namespace headgate::kernels::testing
