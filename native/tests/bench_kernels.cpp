// Speed of the products, beside what the machine can read from memory in the same
// run. Not a test. Usage: bench_kernels [isa] [MiB per matrix], where 0 MiB measures
// only the products of prompts.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/expert_ffn.h"
#include "kernels/linear.h"

using namespace headgate::kernels;

namespace {

// Best of a few runs of `body`, in seconds.
double best_of(int runs, const std::function<void()>& body) {
  double best = 1e9;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
  }
  return best;
}

std::vector<uint8_t> random_bytes(size_t n) {
  std::vector<uint8_t> bytes(n);
  std::mt19937_64 random(1);
  for (size_t i = 0; i + 8 <= n; i += 8) {
    const uint64_t word = random();
    std::copy_n(reinterpret_cast<const uint8_t*>(&word), 8, &bytes[i]);
  }
  return bytes;
}

// A quantised matrix of random codes.
struct Weights {
  std::vector<uint16_t> scales, biases;
  std::vector<uint8_t> q2, q3, q4, q8;
  QuantMatrix matrix;

  Weights(int64_t rows, int64_t cols, int bits, int group) {
    const auto blocks = static_cast<size_t>(rows * cols / 64);
    scales.assign(static_cast<size_t>(rows * cols / group), 0x3c00);
    biases.assign(scales.size(), 0xbd00);
    q2 = random_bytes(blocks * 16);
    if (bits >= 3) q3 = random_bytes(blocks * 8);
    if (bits >= 4) q4 = random_bytes(blocks * 8);
    if (bits >= 8) q8 = random_bytes(blocks * 32);
    matrix = {scales.data(), biases.data(), q2.data(), q3.data(), q4.data(), q8.data(),
              rows,          cols,          group,     bits,      bits,      HalfType::bf16};
  }
};

// Adds up 512 MiB; with and without prefetching, whichever the machine likes better.
double read_bandwidth(ThreadPool& pool) {
  constexpr size_t kWords = (size_t{512} << 20) / 8, kParts = 64;
  static const std::vector<uint64_t> data(kWords, 1);
  std::vector<uint64_t> sums(kParts);
  const auto read = [&](size_t ahead) {
    pool.parallel_for(kParts, 1, [&](int64_t begin, int64_t end) {
      for (auto part = static_cast<size_t>(begin); part < static_cast<size_t>(end); ++part) {
        const uint64_t* p = data.data() + kWords / kParts * part;
        uint64_t lane[8] = {};
        for (size_t i = 0; i < kWords / kParts; i += 8) {
          if (ahead) __builtin_prefetch(p + i + ahead);
          for (size_t j = 0; j < 8; ++j) lane[j] += p[i + j];
        }
        for (uint64_t v : lane) sums[part] += v;
      }
    });
  };
  const double seconds = std::min(best_of(4, [&] { read(0); }), best_of(4, [&] { read(512); }));
  if (sums[0] == 0) std::abort();  // keeps the loop
  return static_cast<double>(kWords) * 8 / seconds / 1e9;
}

void report(const char* what, int threads, const Matrix& w, int64_t tokens, double seconds,
            double bandwidth) {
  const double bytes = static_cast<double>(w.rows() * row_bytes(w));
  const double weights = static_cast<double>(w.rows() * w.cols() * tokens);
  std::printf("%-16s %d threads %3d tokens  %7.2f GB/s  %7.2f Gweights/s", what, threads,
              static_cast<int>(tokens), bytes / seconds / 1e9, weights / seconds / 1e9);
  if (bandwidth > 0) std::printf("  %.2f of read bandwidth", bytes / seconds / 1e9 / bandwidth);
  std::printf("\n");
}

double time_linear(ThreadPool& pool, const QuantKernels& kernels, const Matrix& w, int64_t tokens,
                   int repeats) {
  Scratch scratch, aligned;  // vectors that straddle cache lines would cost a third
  float* x = aligned.get<float>(0, tokens * w.cols());
  float* out = aligned.get<float>(1, tokens * w.rows());
  std::fill_n(x, tokens * w.cols(), 0.5f);
  return best_of(tokens > 1 ? 25 : 5,
                 [&] {
                   for (int i = 0; i < repeats; ++i) {
                     linear(pool, kernels, scratch, x, tokens, {&w, 1}, {&out, 1}, false);
                   }
                 }) /
         repeats;
}

void bench_loops() {
  for (int threads = 1; threads <= 2; ++threads) {
    ThreadPool pool(threads);
    const double seconds = best_of(5, [&] {
      for (int i = 0; i < 2000; ++i) pool.parallel_for(16, 1, [](int64_t, int64_t) {});
    });
    std::printf("empty loop       %d threads  %.2f us\n", threads, seconds / 2000 * 1e6);
  }
}

// Random 4-bit experts, far more of them than a cache holds.
struct Experts {
  static constexpr int64_t kCount = 256;
  ExpertLayout layout;
  int64_t record_bytes = 0;
  std::vector<uint8_t> arena;

  explicit Experts(int64_t inter) {
    layout.hidden = 2048;
    layout.inter = inter;
    const int64_t groups = layout.hidden * inter / 64;
    int64_t at = 0;
    for (auto* m : {&layout.gate, &layout.up, &layout.down}) {
      *m = {at, at + groups * 2, at + groups * 4, at + groups * 20, at + groups * 28, 0, 0};
      at += groups * 36;
    }
    record_bytes = at;
    arena = random_bytes(static_cast<size_t>(at * kCount));
    for (int64_t i = 0; i < kCount; ++i) {
      for (const auto* m : {&layout.gate, &layout.up, &layout.down}) {
        auto* halves = reinterpret_cast<uint16_t*>(arena.data() + i * at + m->scales);
        std::fill_n(halves, groups, 0x3c00);
        std::fill_n(halves + groups, groups, 0xbd00);
      }
    }
  }
  int64_t weights() const { return 3 * layout.hidden * layout.inter; }
  const std::byte* record(int64_t i) const {
    return reinterpret_cast<const std::byte*>(arena.data()) + i * record_bytes;
  }

  // Seconds for tokens[i] random tokens of a prompt through expert i.
  double time(ThreadPool& pool, const QuantKernels& kernels, int64_t prompt,
              const std::vector<std::vector<int32_t>>& tokens) const {
    std::vector<const std::byte*> records;
    std::vector<int32_t> splits = {0}, token_of, out_row;
    for (size_t i = 0; i < tokens.size(); ++i) {
      records.push_back(record(static_cast<int64_t>(i)));
      token_of.insert(token_of.end(), tokens[i].begin(), tokens[i].end());
      splits.push_back(static_cast<int32_t>(token_of.size()));
    }
    for (size_t p = 0; p < token_of.size(); ++p) out_row.push_back(static_cast<int32_t>(p));
    const std::vector<float> x(static_cast<size_t>(prompt * layout.hidden), 0.5f);
    std::vector<float> y(out_row.size() * static_cast<size_t>(layout.hidden));
    Scratch scratch;
    return best_of(10, [&] {
      expert_ffn(pool, kernels, scratch, layout, records, splits, token_of, out_row, x.data(),
                 prompt, y.data(), false);
    });
  }
};

// Eight experts for one token, as a decode step has them.
void bench_decode_experts(ThreadPool& pool, const QuantKernels& kernels) {
  const Experts experts(768);
  const std::vector<float> x(static_cast<size_t>(experts.layout.hidden), 0.5f);
  std::vector<float> y(8 * x.size());
  const std::vector<int32_t> splits = {0, 1, 2, 3, 4, 5, 6, 7, 8}, token_of(8, 0);
  const std::vector<int32_t> out_row = {0, 1, 2, 3, 4, 5, 6, 7};
  Scratch scratch;
  const double seconds =
      best_of(4,
              [&] {
                for (int64_t first = 0; first < Experts::kCount; first += 8) {
                  const std::byte* records[8];
                  for (int64_t i = 0; i < 8; ++i) records[i] = experts.record(first + i);
                  expert_ffn(pool, kernels, scratch, experts.layout, records, splits, token_of,
                             out_row, x.data(), 1, y.data(), false);
                }
              }) /
      (Experts::kCount / 8);
  std::printf("8 experts 4-bit  %d threads  %.1f us  %.2f GB/s\n", pool.threads(), seconds * 1e6,
              static_cast<double>(8 * experts.record_bytes) / seconds / 1e9);
}

// Experts of a prompt: a fixed number of tokens for each of 32, and the 8 experts of 256
// that each of 512 tokens chooses at random.
void bench_prompt_experts(ThreadPool& pool, const QuantKernels& kernels) {
  const Experts experts(512);
  std::mt19937_64 random(2);
  const auto show = [&](const char* what, size_t count, double pairs, double seconds) {
    std::printf("%3zu experts 4-bit %d threads %3s tokens each  %8.2f ms  %7.2f Gweights/s\n",
                count, pool.threads(), what, seconds * 1e3,
                static_cast<double>(experts.weights()) * pairs / seconds / 1e9);
  };
  for (const int tokens : {4, 8, 16, 32, 64}) {
    std::vector<int32_t> all(static_cast<size_t>(tokens));
    for (int i = 0; i < tokens; ++i) all[static_cast<size_t>(i)] = i;
    const std::vector<std::vector<int32_t>> chosen(32, all);
    show(std::to_string(tokens).c_str(), 32, 32 * tokens,
         experts.time(pool, kernels, tokens, chosen));
  }
  constexpr int kPrompt = 512, kTop = 8;
  std::vector<std::vector<int32_t>> chosen(Experts::kCount);
  for (int32_t t = 0; t < kPrompt; ++t) {
    for (int k = 0; k < kTop; ++k) {
      auto* expert = &chosen[random() % Experts::kCount];
      while (!expert->empty() && expert->back() == t) expert = &chosen[random() % Experts::kCount];
      expert->push_back(t);
    }
  }
  show("~16", chosen.size(), kPrompt * kTop, experts.time(pool, kernels, kPrompt, chosen));
}

// Products of a prompt, with weights that stay in the cache and more tokens than that.
void bench_prompt(ThreadPool& pool, const QuantKernels& kernels) {
  for (const int bits : {2, 4, 8}) {
    const Weights w(1024, 2048, bits, 64);
    const std::string what = std::to_string(bits) + "-bit";
    for (const int64_t tokens : {1, 4, 8, 16, 32, 64, 256}) {
      const int repeats = static_cast<int>(std::max<int64_t>(1, 32 / tokens));
      report(what.c_str(), pool.threads(), w.matrix, tokens,
             time_linear(pool, kernels, w.matrix, tokens, repeats), 0);
    }
  }
  const std::vector<uint16_t> data(1024 * 2048, 0x3c00);
  const Matrix w = DenseMatrix{data.data(), 1024, 2048, DenseType::bf16};
  for (const int64_t tokens : {1, 16, 64, 256}) {
    report("bf16", pool.threads(), w, tokens, time_linear(pool, kernels, w, tokens, 1), 0);
  }
  bench_prompt_experts(pool, kernels);
}

}  // namespace

int main(int argc, char** argv) {
  const Isa isa = argc > 1 && argv[1][0] ? parse_isa(argv[1]) : best_isa();
  const int64_t mebibytes = argc > 2 ? std::atoi(argv[2]) : 256;
  const QuantKernels& kernels = quant_kernels(isa);
  std::printf("%s\n", name(isa));
  if (mebibytes == 0) {
    for (int threads = 1; threads <= 2; ++threads) {
      ThreadPool pool(threads);
      bench_prompt(pool, kernels);
    }
    return 0;
  }
  bench_loops();
  for (int threads = 1; threads <= 2; ++threads) {
    ThreadPool pool(threads);
    double bandwidth = 0;  // the best so far: other work on the machine only lowers it
    const auto measure = [&] {
      bandwidth = std::max(bandwidth, read_bandwidth(pool));
      std::printf("memory read      %d threads  %.2f GB/s\n", threads, bandwidth);
    };
    for (const int bits : {2, 3, 4, 8}) {
      const std::string what = std::to_string(bits) + "-bit";
      const int64_t cols = 4096, rows = (mebibytes << 20) / (cols * bits / 8);
      measure();
      const Weights large(rows, cols, bits, 64);
      report(what.c_str(), threads, large.matrix, 1, time_linear(pool, kernels, large.matrix, 1, 1),
             bandwidth);
      const Weights small(512 * threads, 2048, bits, 64);
      report((what + " in cache").c_str(), threads, small.matrix, 1,
             time_linear(pool, kernels, small.matrix, 1, 50), 0);
      report((what + " in cache").c_str(), threads, small.matrix, 64,
             time_linear(pool, kernels, small.matrix, 64, 2), 0);
    }
    for (const DenseType type : {DenseType::bf16, DenseType::f16}) {
      const int64_t cols = 4096, rows = (mebibytes << 20) / (cols * 2);
      const std::vector<uint16_t> data(static_cast<size_t>(rows * cols), 0x3c00);
      const Matrix w = DenseMatrix{data.data(), rows, cols, type};
      measure();
      const char* what = type == DenseType::bf16 ? "bf16" : "f16";
      report(what, threads, w, 1, time_linear(pool, kernels, w, 1, 1), bandwidth);
      const Matrix small = DenseMatrix{data.data(), 256, 2048, type};
      report(what, threads, small, 64, time_linear(pool, kernels, small, 64, 2), 0);
    }
    bench_decode_experts(pool, kernels);
  }
}
