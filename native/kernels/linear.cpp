#include "kernels/linear.h"

#include <algorithm>
#include <cstring>

#include "kernels/quant_isa.h"

namespace headgate::kernels {
namespace {

constexpr std::array<int32_t, 3> kGroups = {32, 64, 128};
constexpr int64_t kPackedTokens = 16;  // at a time: QuantKernels::pack
// Of weights. What is fetched ahead at the end of a range is of use to another thread at best,
// so ranges are long; the last ones are shared out by row_grain.
constexpr int64_t kRangeBytes = 256 << 10;
constexpr int64_t kInline = 32 << 10;  // products that cost less than waking a thread

// Activations for each group size that the matrices use.
std::array<QuantActivations, 3> quantize_all(ThreadPool& pool, const QuantKernels& kernels,
                                             Scratch& scratch, const float* x, int64_t tokens,
                                             std::span<const Matrix> ws) {
  std::array<QuantActivations, 3> result;
  for (size_t i = 0; i < kGroups.size(); ++i) {
    const auto found = std::find_if(ws.begin(), ws.end(), [&](const Matrix& w) {
      return w.quant() && w.quant()->group == kGroups[i];
    });
    if (found == ws.end()) continue;
    const int64_t cols = found->cols();
    const auto buffer = ActivationBuffer::in(scratch, kernels, i * ActivationBuffer::kSlots, tokens,
                                             cols, kGroups[i]);
    const int64_t grain = std::max<int64_t>(1, kInline / std::max<int64_t>(cols, 1));
    pool.parallel_for(tokens, grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) buffer.quantize(kernels, x + t * cols, cols, t);
    });
    if (kernels.pack && tokens > 1) {
      const int64_t tiles = (tokens + kPackedTokens - 1) / kPackedTokens;
      pool.parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * kPackedTokens, last = std::min(end * kPackedTokens, tokens);
        buffer.pack(kernels, first, last - first);
      });
    }
    result[i] = buffer.rows(0, tokens);
  }
  return result;
}

size_t group_index(int32_t group) { return group == 32 ? 0 : group == 64 ? 1 : 2; }

}  // namespace

const QuantKernels& quant_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return kQuantAvx2;
    case Isa::avx512:
      return kQuantAvx512;
#if defined(HEADGATE_AMX)
    case Isa::amx:
      return kQuantAmx;
#endif
#elif defined(__aarch64__)
    case Isa::neon:
      return kQuantNeon;
#endif
    default:
      return kQuantScalar;
  }
}

void* Scratch::bytes(size_t slot, size_t size) {
  Buffer& buffer = buffers_[slot];
  if (buffer.size < size) {
    buffer.size = 0;
    buffer.data.reset();  // first, so that both are never held at once
    buffer.data.reset(static_cast<std::byte*>(::operator new(size, std::align_val_t{64})));
    buffer.size = size;
  }
  return buffer.data.get();
}

ActivationBuffer ActivationBuffer::in(Scratch& scratch, const QuantKernels& kernels, size_t slot,
                                      int64_t rows, int64_t cols, int32_t group) {
  QuantMatrix shape;
  shape.cols = cols;
  shape.group = group;
  ActivationBuffer buffer;
  buffer.padded = shape.padded();
  buffer.group = group;
  buffer.q = scratch.get<int8_t>(slot, rows * buffer.padded);
  buffer.scales = scratch.get<float>(slot + 1, rows * (buffer.padded / 64));
  buffer.sums = scratch.get<float>(slot + 2, rows * (buffer.padded / group));
  if (kernels.pack && rows > 1) {
    buffer.packed = scratch.get<std::byte>(slot + 3, rows * packed_bytes(buffer.padded, group));
  }
  return buffer;
}

void ActivationBuffer::quantize(const QuantKernels& kernels, const float* x, int64_t cols,
                                int64_t row) const {
  kernels.quantize(x, cols, padded, group, q + row * padded, scales + row * (padded / 64),
                   sums + row * (padded / group));
}

void ActivationBuffer::copy_row(int64_t from, int64_t to) const {
  const auto copy = [&](auto* data, int64_t n) {
    std::memcpy(data + to * n, data + from * n, static_cast<size_t>(n) * sizeof *data);
  };
  copy(q, padded);
  copy(scales, padded / 64);
  copy(sums, padded / group);
}

void ActivationBuffer::pack(const QuantKernels& kernels, int64_t first, int64_t count) const {
  if (packed) kernels.pack(rows(first, count), packed + first * packed_bytes(padded, group));
}

QuantActivations ActivationBuffer::rows(int64_t first, int64_t count) const {
  QuantActivations x = {q + first * padded,
                        scales + first * (padded / 64),
                        sums + first * (padded / group),
                        count,
                        padded,
                        group};
  if (packed && count > 1) x.packed = packed + first * packed_bytes(padded, group);
  return x;
}

int64_t row_bytes(const Matrix& w) {
  if (const auto* quant = w.quant()) {
    return quant->padded() * quant->used_bits / 8 + quant->padded() / quant->group * 4;
  }
  return w.cols() * (w.dense()->type == DenseType::f32 ? 4 : 2);
}

int64_t row_grain(const ThreadPool& pool, const QuantKernels& kernels, int64_t rows,
                  int64_t row_bytes, int64_t tokens) {
  if (row_bytes * rows * tokens <= kInline) return std::max<int64_t>(rows, 1);
  const int64_t wanted = std::max<int64_t>(kRangeBytes / std::max<int64_t>(row_bytes, 1), 2);
  const int64_t even = rows / (int64_t{4} * pool.threads());
  const int64_t grain = std::max<int64_t>(std::min(wanted, even), 1);
  return (grain + kernels.row_tile - 1) / kernels.row_tile * kernels.row_tile;
}

void linear(ThreadPool& pool, const QuantKernels& kernels, Scratch& scratch, const float* x,
            int64_t tokens, std::span<const Matrix> ws, std::span<float* const> ys, bool exact) {
  if (tokens <= 0 || ws.empty()) return;
  std::array<QuantActivations, 3> quantised;
  if (!exact) quantised = quantize_all(pool, kernels, scratch, x, tokens, ws);
  int64_t rows = 0, bytes = 0;
  for (const Matrix& w : ws) {
    rows += w.rows();
    bytes = std::max(bytes, row_bytes(w));
  }
  // One loop over the rows of all matrices: a decode step makes hundreds of these
  // calls, and each further loop would make every thread wait for the slowest.
  pool.parallel_for(
      rows, row_grain(pool, kernels, rows, bytes, tokens), [&](int64_t begin, int64_t end) {
        int64_t first = 0;  // row 0 of the matrix in the joint numbering
        for (size_t i = 0; i < ws.size() && first < end; first += ws[i].rows(), ++i) {
          const Matrix& w = ws[i];
          const int64_t from = std::max<int64_t>(begin - first, 0);
          const int64_t to = std::min(end - first, w.rows());
          if (from >= to) continue;
          if (const auto* dense = w.dense()) {
            kernels.dense_rows(*dense, x, tokens, w.cols(), from, to, ys[i], w.rows());
          } else if (exact) {
            kernels.exact_rows(*w.quant(), x, tokens, w.cols(), from, to, ys[i], w.rows());
          } else {
            kernels.quant_rows(*w.quant(), quantised[group_index(w.quant()->group)], from, to,
                               ys[i], w.rows());
          }
        }
      });
}

}  // namespace headgate::kernels
