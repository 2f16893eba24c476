// Every instruction set that runs here against double precision, over random shapes;
// the drivers against their definitions; the thread pool under load.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <thread>

#include "expert_cases.h"
#include "kernel_cases.h"
#include "kernels/expert_ffn.h"
#include "kernels/linear.h"

using namespace headgate::kernels;
using namespace headgate::kernels::testing;

namespace {

constexpr float kUntouched = -12345.0f;
constexpr int kWidths[] = {2, 3, 4, 8};

std::vector<Isa> isas() {
  std::vector<Isa> all;
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx, Isa::neon}) {
    if (supports(isa)) all.push_back(isa);
  }
  return all;
}

void every_index_is_visited_once(int threads) {
  ThreadPool pool(threads);
  CHECK(pool.threads() == std::max(threads, 1));
  for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
    for (int64_t grain : {0, 1, 3, 64, 5000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(n));
      pool.parallel_for(n, grain, [&](int64_t begin, int64_t end) {
        CHECK(begin < end && end <= n);
        for (int64_t i = begin; i < end; ++i) visits[static_cast<size_t>(i)]++;
      });
      for (auto& v : visits) CHECK(v == 1);
    }
  }
}

// Results are read without atomics: the end of a loop must order them.
void tiny_loops_from_several_threads(int threads, int callers, int loops) {
  ThreadPool pool(threads);
  std::vector<std::thread> running;
  for (int c = 0; c < callers; ++c) {
    running.emplace_back([&pool, c, loops] {
      std::vector<int64_t> values(8);
      for (int i = 0; i < loops; ++i) {
        pool.parallel_for(8, 1, [&](int64_t begin, int64_t end) {
          for (int64_t k = begin; k < end; ++k) values[static_cast<size_t>(k)] += k + c;
        });
        // Longer than workers spin, so that they are also found asleep.
        if (i % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
      for (int64_t k = 0; k < 8; ++k) CHECK(values[static_cast<size_t>(k)] == loops * (k + c));
    });
  }
  for (auto& t : running) t.join();
}

void slow_ranges_are_waited_for() {
  ThreadPool pool(3);
  for (int i = 0; i < 30; ++i) {
    std::vector<int> done(3);
    pool.parallel_for(3, 1, [&](int64_t begin, int64_t) {
      std::this_thread::sleep_for(std::chrono::microseconds(300 + 300 * begin));
      done[static_cast<size_t>(begin)] = 1;
    });
    CHECK(done == std::vector<int>(3, 1));
  }
}

void pools_come_and_go() {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(i % 5);
    std::atomic<int> sum = 0;
    if (i % 2) pool.parallel_for(3, 1, [&](int64_t begin, int64_t) { sum += int(begin) + 1; });
    if (i % 4 == 1 && i % 5 > 1) CHECK(sum == 6);
  }
}

void quantised_activations_are_near(Isa isa) {
  const QuantKernels& kernels = quant_kernels(isa);
  Random random(1);
  for (int round = 0; round < 40; ++round) {
    QuantMatrix w;
    w.cols = pick(random, 1, 400);
    w.group = 32 << pick(random, 0, 2);
    auto x = random_floats(random, w.cols);
    if (round % 4 == 0) std::fill_n(x.data(), std::min<int64_t>(64, w.cols), 0.0f);
    const ActivationCase a(kernels, w, x.data(), 1);
    const ActivationCase reference(quant_kernels(Isa::scalar), w, x.data(), 1);
    CHECK(std::equal(a.q.begin(), a.q.end(), reference.q.begin()));
    CHECK(std::equal(a.scales.begin(), a.scales.end(), reference.scales.begin()));
    for (int64_t i = 0; i < w.padded(); ++i) {
      const double value = i < w.cols ? x[i] : 0;
      CHECK(std::abs(a.at(0, i) - value) <= a.scales[i / 64] * 0.50001);
    }
    for (int64_t g = 0; g < w.padded() / w.group; ++g) {
      Expected sum;
      for (int64_t i = g * w.group; i < (g + 1) * w.group; ++i) sum.add(1, a.at(0, i));
      CHECK(sum.matches(a.sums[g]));
    }
  }
}

void values_that_are_not_finite_show(Isa isa) {
  const QuantKernels& kernels = quant_kernels(isa);
  Random random(2);
  const QuantCase w(random, 3, 200, 64, 4, 4, true);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    auto x = random_floats(random, 400);
    x[70] = bad;
    x[72] = bad;
    const ActivationCase a(kernels, w.matrix, x.data(), 2);
    float y[6];
    kernels.quant_rows(w.matrix, a.view, 0, 3, y, 3);
    for (int row = 0; row < 3; ++row) CHECK(std::isnan(y[row]) && std::isfinite(y[3 + row]));
  }
  // Too small for int8 with a scale of their own: zero, and not NaN.
  auto x = random_floats(random, 200);
  for (float& v : x) v *= 1e-40f;
  const ActivationCase a(kernels, w.matrix, x.data(), 1);
  for (const float scale : a.scales) CHECK(scale == 0);
}

// Calls body(rows, cols, tokens, begin, end) with random shapes.
template <class Body>
void over_shapes(Random& random, int rounds, Body body) {
  for (int round = 0; round < rounds; ++round) {
    const int64_t rows = pick(random, 1, 7), tokens = pick(random, 1, 9);
    const int64_t cols = round % 5 == 0 ? pick(random, 1000, 2600) : pick(random, 1, 300);
    const int64_t begin = pick(random, 0, rows - 1), end = pick(random, begin, rows);
    body(rows, cols, tokens, begin, end);
  }
}

// Runs `product(tokens, x offset, y)` for all tokens and for each alone; the results
// must be the same bits, match `expected(token, row)`, and nothing else be written.
template <class Product, class Want>
void check_rows(int64_t rows, int64_t tokens, int64_t begin, int64_t end, Product product,
                Want expected) {
  std::vector<float> y(static_cast<size_t>(rows * tokens), kUntouched);
  product(0, tokens, y.data());
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<float> alone(static_cast<size_t>(rows), kUntouched);
    product(t, 1, alone.data());
    for (int64_t row = 0; row < rows; ++row) {
      const float value = y[static_cast<size_t>(t * rows + row)];
      CHECK(value == alone[static_cast<size_t>(row)]);
      const bool inside = row >= begin && row < end;
      CHECK(inside ? expected(t, row).matches(value) : value == kUntouched);
    }
  }
}

void check_quant(const QuantKernels& kernels, const QuantCase& w, const Guarded<float>& x,
                 int64_t tokens, int64_t begin, int64_t end) {
  const QuantMatrix& m = w.matrix;
  const ActivationCase a(kernels, m, x.data(), tokens);
  check_rows(
      m.rows, tokens, begin, end,
      [&](int64_t first, int64_t count, float* y) {
        const ActivationCase part(kernels, m, x.data() + first * m.cols, count);
        kernels.quant_rows(m, part.view, begin, end, y, m.rows);
      },
      [&](int64_t t, int64_t row) {
        Expected sum;
        for (int64_t c = 0; c < m.cols; ++c) w.add(sum, row, c, a.at(t, c));
        return sum;
      });
  check_rows(
      m.rows, tokens, begin, end,
      [&](int64_t first, int64_t count, float* y) {
        kernels.exact_rows(m, x.data() + first * m.cols, count, m.cols, begin, end, y, m.rows);
      },
      [&](int64_t t, int64_t row) {
        Expected sum;
        for (int64_t c = 0; c < m.cols; ++c) w.add(sum, row, c, x[t * m.cols + c]);
        return sum;
      });
}

void quantised_products_match(Isa isa) {
  Random random(3);
  for (const int stored : kWidths) {
    for (const int used : kWidths) {
      if (used > stored) continue;
      over_shapes(random, 12,
                  [&](int64_t rows, int64_t cols, int64_t tokens, int64_t begin, int64_t end) {
                    const int group = 32 << pick(random, 0, 2);
                    const QuantCase w(random, rows, cols, group, stored, used, pick(random, 0, 1));
                    check_quant(quant_kernels(isa), w, random_floats(random, tokens * cols), tokens,
                                begin, end);
                  });
    }
  }
  // More tokens than one pass over a row takes, and the largest codes and activations.
  QuantCase w(random, 3, 1100, 32, 8, 8, true);
  std::fill(w.codes.begin(), w.codes.end(), uint8_t{255});
  for (auto* plane : {&w.q2, &w.q3, &w.q4, &w.q8}) std::fill(plane->begin(), plane->end(), 255);
  Guarded<float> x(70 * 1100);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = i / 1100 % 2 ? 1.0f : -1.0f;
  check_quant(quant_kernels(isa), w, x, 70, 0, 3);
}

// More tokens than rows have lanes and tiles have columns, with and without what pack()
// makes of them.
void prompts_match(Isa isa) {
  const QuantKernels& kernels = quant_kernels(isa);
  Random random(9);
  for (const int64_t tokens : {2, 3, 4, 5, 8, 11, 16, 17, 34, 260}) {
    for (const int group : {32, 64, 128}) {
      const int64_t rows = pick(random, 1, 40), begin = pick(random, 0, rows - 1);
      const int64_t cols = tokens < 16 ? pick(random, 900, 2600) : pick(random, 1, 300);
      const int stored = kWidths[pick(random, 0, 3)], used = std::min(stored, kWidths[tokens % 4]);
      const QuantCase w(random, rows, cols, group, stored, used, pick(random, 0, 1));
      const auto x = random_floats(random, tokens * cols);
      check_quant(kernels, w, x, tokens, begin, rows);

      const ActivationCase packed(kernels, w.matrix, x.data(), tokens);
      QuantActivations plain = packed.view;
      plain.packed = nullptr;
      std::vector<float> y(static_cast<size_t>(rows * tokens)), same(y.size());
      kernels.quant_rows(w.matrix, packed.view, begin, rows, y.data(), rows);
      kernels.quant_rows(w.matrix, plain, begin, rows, same.data(), rows);
      CHECK(y == same);
    }
  }
}

void dense_products_match(Isa isa) {
  const QuantKernels& kernels = quant_kernels(isa);
  Random random(4);
  for (const DenseType type : {DenseType::f32, DenseType::bf16, DenseType::f16}) {
    over_shapes(random, 30,
                [&](int64_t rows, int64_t cols, int64_t tokens, int64_t begin, int64_t end) {
                  const DenseCase w(random, rows, cols, type);
                  const auto x = random_floats(random, tokens * cols);
                  check_rows(
                      rows, tokens, begin, end,
                      [&](int64_t first, int64_t count, float* y) {
                        kernels.dense_rows(w.matrix, x.data() + first * cols, count, cols, begin,
                                           end, y, rows);
                      },
                      [&](int64_t t, int64_t row) {
                        Expected sum;
                        for (int64_t c = 0; c < cols; ++c) sum.add(w.at(row, c), x[t * cols + c]);
                        return sum;
                      });
                });
  }
}

// Matrices of all kinds at once give what each gives by itself, on any pool.
void linear_is_rows_of_each_matrix(Isa isa) {
  const QuantKernels& kernels = quant_kernels(isa);
  Random random(5);
  for (const int64_t tokens : {1, 6, 37}) {
    const int64_t cols = 330;
    const QuantCase a(random, 60, cols, 64, 4, 4, true), b(random, 33, cols, 128, 8, 3, false);
    const QuantCase c(random, 20, cols, 64, 2, 2, true);
    const DenseCase d(random, 41, cols, DenseType::f16);
    const std::vector<Matrix> ws = {a.matrix, d.matrix, b.matrix, c.matrix};
    const auto x = random_floats(random, tokens * cols);
    for (const bool exact : {false, true}) {
      std::vector<std::vector<float>> first;
      for (const int threads : {1, 2, 5}) {
        ThreadPool pool(threads);
        Scratch scratch;
        std::vector<std::vector<float>> ys;
        std::vector<float*> out;
        for (const Matrix& w : ws) ys.emplace_back(static_cast<size_t>(tokens * w.rows()));
        for (auto& y : ys) out.push_back(y.data());
        linear(pool, kernels, scratch, x.data(), tokens, ws, out, exact);
        if (first.empty()) first = ys;
        CHECK(ys == first);
      }
      for (size_t i = 0; i < ws.size(); ++i) {
        std::vector<float> y(static_cast<size_t>(tokens * ws[i].rows()));
        if (const auto* m = ws[i].quant()) {
          const ActivationCase act(kernels, *m, x.data(), tokens);
          if (exact) {
            kernels.exact_rows(*m, x.data(), tokens, cols, 0, m->rows, y.data(), m->rows);
          } else {
            kernels.quant_rows(*m, act.view, 0, m->rows, y.data(), m->rows);
          }
        } else {
          kernels.dense_rows(*ws[i].dense(), x.data(), tokens, cols, 0, ws[i].rows(), y.data(),
                             ws[i].rows());
        }
        CHECK(y == first[i]);
      }
    }
  }
}

void check_experts(const QuantKernels& kernels, const ExpertCase& c, int64_t tokens, bool exact) {
  Random random(6);
  const int64_t hidden = c.layout.hidden;
  const auto x = random_floats(random, tokens * hidden);
  const Routing routing(random, c.records.size(), tokens);
  std::vector<const std::byte*> records;
  for (const auto& r : c.records) records.push_back(r.data());
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    Scratch scratch;
    std::vector<float> y((routing.token_of.size() + 1) * static_cast<size_t>(hidden), kUntouched);
    for (int repeat = 0; repeat < 2; ++repeat) {
      expert_ffn(pool, kernels, scratch, c.layout, records, routing.splits, routing.token_of,
                 routing.out_row, x.data(), tokens, y.data(), exact);
    }
    CHECK(std::all_of(y.end() - hidden, y.end(), [](float v) { return v == kUntouched; }));
    for (size_t n = 0; n < records.size(); ++n) {
      for (auto p = static_cast<size_t>(routing.splits[n]);
           p < static_cast<size_t>(routing.splits[n + 1]); ++p) {
        const auto alone = c.alone(kernels, n, x.data() + routing.token_of[p] * hidden, exact);
        CHECK(std::equal(alone.begin(), alone.end(), y.begin() + routing.out_row[p] * hidden));
      }
    }
  }
}

void experts_are_compositions(Isa isa) {
  Random random(7);
  const QuantKernels& kernels = quant_kernels(isa);
  for (const int group : {32, 64, 128}) {
    for (const int used : kWidths) {
      const ExpertCase c(random, ExpertKind::quant, group, used == 4 ? 8 : used, used, 4);
      check_experts(kernels, c, 1, false);
      check_experts(kernels, c, 5, false);
      check_experts(kernels, c, 40, false);
      check_experts(kernels, c, 3, true);
    }
  }
  for (const ExpertKind kind : {ExpertKind::bf16, ExpertKind::f16}) {
    const ExpertCase c(random, kind, 64, 4, 4, 4);
    check_experts(kernels, c, 1, false);
    check_experts(kernels, c, 5, true);
  }
}

void silu_is_accurate() {
  std::vector<float> gate, up;
  for (double v = -86; v < 90; v += 0.00737) gate.push_back(static_cast<float>(v));
  up.assign(gate.size(), 1.0f);
  std::vector<float> out(gate.size());
  silu_mul(gate.data(), up.data(), out.data(), static_cast<int64_t>(gate.size()));
  for (size_t i = 0; i < gate.size(); ++i) {
    const double v = gate[i], want = v / (1 + std::exp(-v));
    CHECK(std::abs(out[i] - want) <= 1e-6 * std::abs(want));
  }
  const float extremes[] = {-1e30f, 1e30f, 0.0f, std::numeric_limits<float>::quiet_NaN()};
  const float ones[] = {1, 1, 1, 1};
  float result[4];
  silu_mul(extremes, ones, result, 4);
  CHECK(result[1] == 1e30f && result[2] == 0 && std::isnan(result[3]));
}

void combine_adds_in_order() {
  Random random(8);
  ThreadPool pool(3);
  const int64_t tokens = 3, experts = 4, hidden = 1111;
  const auto y = random_floats(random, tokens * experts * hidden);
  const auto weights = random_floats(random, tokens * experts);
  const auto base = random_floats(random, tokens * hidden);
  std::vector<float> out(static_cast<size_t>(tokens * hidden));
  combine(pool, y.data(), weights.data(), base.data(), out.data(), tokens, experts, hidden);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < hidden; ++h) {
      Expected sum;
      sum.add(1, base[t * hidden + h]);
      for (int64_t k = 0; k < experts; ++k) {
        sum.add(weights[t * experts + k], y[(t * experts + k) * hidden + h]);
      }
      CHECK(sum.matches(out[static_cast<size_t>(t * hidden + h)], 1e-6));
    }
  }
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 9}) RUN(every_index_is_visited_once(threads));
  RUN(tiny_loops_from_several_threads(2, 1, 5000));
  RUN(tiny_loops_from_several_threads(2, 3, 1000));
  RUN(tiny_loops_from_several_threads(7, 3, 200));
  RUN(slow_ranges_are_waited_for());
  RUN(pools_come_and_go());
  for (const Isa isa : isas()) {
    std::fprintf(stderr, "-- %s\n", name(isa));
    RUN(quantised_activations_are_near(isa));
    RUN(values_that_are_not_finite_show(isa));
    RUN(quantised_products_match(isa));
    RUN(prompts_match(isa));
    RUN(dense_products_match(isa));
    RUN(linear_is_rows_of_each_matrix(isa));
    RUN(experts_are_compositions(isa));
  }
  RUN(silu_is_accurate());
  RUN(combine_adds_in_order());
}
