#include "kernels/float_ops.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

namespace headgate::kernels {

extern const FloatKernels kFloatKernels_scalar;
extern const FloatKernels kFloatKernels_avx2;
extern const FloatKernels kFloatKernels_avx512;
extern const FloatKernels kFloatKernels_neon;

namespace {

constexpr std::align_val_t kAlignment{64};
constexpr int64_t kGrainFloats = 16384;  // less work than this is not worth waking a thread

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whole cache lines, so that threads do not share them.
int64_t lines(int64_t floats) { return ceil_div(floats, 16) * 16; }

// How attention is divided. It depends on shapes only: with the number of threads
// in it, so would the order of summation.
struct AttentionPlan {
  static constexpr int64_t kRows = 64;          // rows of a tile
  static constexpr int64_t kTasks = 64;         // enough for this many threads
  static constexpr int64_t kBlockTokens = 256;  // bounds the memory for queries
  static constexpr int64_t kSplitKeys = 256;    // fewer are not worth a merge

  explicit AttentionPlan(const Attention& p) {
    const int64_t group = p.heads / p.kv_heads;
    tile_tokens = std::min(std::max<int64_t>(kRows / group, 1), p.tokens);
    rows = tile_tokens * group;
    block_tokens =
        std::min(std::max(kBlockTokens / tile_tokens, int64_t{1}) * tile_tokens, p.tokens);
    tiles = ceil_div(block_tokens, tile_tokens) * p.kv_heads;
  }

  // Parts into which the keys of a block are cut.
  int64_t splits(int64_t keys) const {
    return std::clamp<int64_t>(kTasks / tiles, 1, ceil_div(keys, kSplitKeys));
  }

  AttentionTile tile(const Attention& p, int64_t block, int64_t index) const {
    const int64_t first = block + index / p.kv_heads * tile_tokens;
    const int64_t end = std::min(block + block_tokens, p.tokens);
    return {first, std::min(tile_tokens, end - first), index % p.kv_heads};
  }

  int64_t rows, tile_tokens, block_tokens, tiles;
};

// Tokens [block, block + block_tokens), whose keys are in the cache.
void attend_block(const FloatKernels& kernels, ThreadPool& pool, FloatScratch& scratch,
                  const Attention& p, const AttentionPlan& plan, int64_t block, float* y) {
  const int64_t query_floats = lines(kernels.attention_query_floats(p, plan.rows));
  const int64_t part_floats = lines(kernels.attention_part_floats(p, plan.rows));
  const int64_t tokens = std::min(plan.block_tokens, p.tokens - block);
  const int64_t tiles = ceil_div(tokens, plan.tile_tokens) * p.kv_heads;
  const int64_t splits = plan.splits(p.start + p.tokens);
  const int64_t group = p.heads / p.kv_heads;
  float* queries = scratch.shared();
  float* parts = queries + plan.tiles * query_floats;

  pool.parallel_for(tiles, ceil_div(kGrainFloats, query_floats), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.attention_queries(p, plan.tile(p, block, i), queries + i * query_floats);
    }
  });
  pool.parallel_for(tiles * splits, 1, [&](int64_t begin, int64_t end) {
    FloatScratch::Slot slot(scratch);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = tiles - 1 - task / splits;  // the longest first
      const int64_t split = task % splits;
      const AttentionTile tile = plan.tile(p, block, index);
      const int64_t rows = tile.tokens * group;
      const int64_t keys = p.start + tile.first + tile.tokens;
      float* part = splits > 1 ? parts + index * splits * part_floats +
                                     split * kernels.attention_part_floats(p, rows)
                               : slot.data() + lines(kernels.attention_work_floats(p, plan.rows));
      kernels.attention_attend(p, tile, queries + index * query_floats, keys * split / splits,
                               keys * (split + 1) / splits, part, slot.data());
      if (splits == 1) kernels.attention_merge(p, tile, part, 1, 0, rows, y);
    }
  });
  if (splits == 1) return;
  pool.parallel_for(tiles * plan.rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = i / plan.rows, row = i % plan.rows;
      const AttentionTile tile = plan.tile(p, block, index);
      if (row >= tile.tokens * group) continue;
      kernels.attention_merge(p, tile, parts + index * splits * part_floats, splits, row, row + 1,
                              y);
    }
  });
}

// Blocks up to this are cheaper token by token.
constexpr int64_t kStepTokens = 3;

}  // namespace

const FloatKernels& float_kernels(Isa isa) {
  if (!supports(isa)) {
    throw std::invalid_argument(std::string("this machine cannot run ") + name(isa) + " kernels");
  }
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return kFloatKernels_avx2;
    case Isa::avx512:
    case Isa::amx:
      return kFloatKernels_avx512;
#elif defined(__aarch64__)
    case Isa::neon:
      return kFloatKernels_neon;
#endif
    default:
      return kFloatKernels_scalar;
  }
}

void FloatScratch::Free::operator()(float* memory) const { ::operator delete(memory, kAlignment); }

void FloatScratch::prepare(int64_t shared, int64_t each, int slots) {
  shared_ = lines(shared);
  each_ = lines(each);
  if (slots > slots_) {
    taken_.reset(new std::atomic<bool>[static_cast<size_t>(slots)]());
    slots_ = slots;
  }
  const int64_t total = shared_ + each_ * slots_;
  if (total <= capacity_) return;
  capacity_ = 0;
  memory_.reset();
  memory_.reset(
      static_cast<float*>(::operator new(static_cast<size_t>(total) * sizeof(float), kAlignment)));
  capacity_ = total;
}

FloatScratch::Slot::Slot(FloatScratch& scratch) {
  for (int i = 0;; i = (i + 1) % scratch.slots_) {
    if (scratch.taken_[i].exchange(true, std::memory_order_acquire)) continue;
    taken_ = &scratch.taken_[i];
    data_ = scratch.shared() + scratch.shared_ + i * scratch.each_;
    return;
  }
}

void rms_norm(const FloatKernels& kernels, ThreadPool& pool, const float* x, const float* w,
              int64_t rows, int64_t width, float eps, float* y) {
  pool.parallel_for(
      rows, ceil_div(kGrainFloats, std::max<int64_t>(width, 1)), [&](int64_t begin, int64_t end) {
        kernels.rms_norm(x + begin * width, w, end - begin, width, eps, y + begin * width);
      });
}

void silu_mul(const FloatKernels& kernels, ThreadPool& pool, const float* gate, const float* up,
              int64_t n, float* y) {
  pool.parallel_for(n, kGrainFloats, [&](int64_t begin, int64_t end) {
    kernels.silu_mul(gate + begin, up + begin, end - begin, y + begin);
  });
}

void add_scaled(const FloatKernels& kernels, ThreadPool& pool, const float* base, const float* y,
                const float* gate_logit, int64_t rows, int64_t width, float* out) {
  pool.parallel_for(rows, ceil_div(kGrainFloats, std::max<int64_t>(width, 1)),
                    [&](int64_t begin, int64_t end) {
                      kernels.add_scaled(base + begin * width, y + begin * width,
                                         gate_logit ? gate_logit + begin : nullptr, end - begin,
                                         width, out + begin * width);
                    });
}

void route(const FloatKernels& kernels, ThreadPool& pool, const float* logits, int64_t rows,
           int64_t experts, int64_t k, bool renormalise, int32_t* ids, float* weights) {
  pool.parallel_for(rows, ceil_div(kGrainFloats / 4, experts), [&](int64_t begin, int64_t end) {
    kernels.route(logits + begin * experts, end - begin, experts, k, renormalise, ids + begin * k,
                  weights + begin * k);
  });
}

void attention(const FloatKernels& kernels, ThreadPool& pool, FloatScratch& scratch,
               const Attention& p, float* y) {
  if (p.tokens == 0) return;
  const AttentionPlan plan(p);
  const int64_t splits = plan.splits(p.start + p.tokens);
  const int64_t part = lines(kernels.attention_part_floats(p, plan.rows));
  const int64_t queries = lines(kernels.attention_query_floats(p, plan.rows));
  const int64_t work = lines(kernels.attention_work_floats(p, plan.rows));
  scratch.prepare(plan.tiles * (queries + (splits > 1 ? splits * part : 0)), work + part,
                  pool.threads());
  const int64_t row = p.kv_heads * p.head_dim;
  pool.parallel_for(p.tokens, ceil_div(kGrainFloats / 4, row),
                    [&](int64_t begin, int64_t end) { kernels.attention_store(p, begin, end); });
  for (int64_t block = 0; block < p.tokens; block += plan.block_tokens) {
    attend_block(kernels, pool, scratch, p, plan, block, y);
  }
}

void delta_net(const FloatKernels& kernels, ThreadPool& pool, FloatScratch& scratch,
               const DeltaNet& p, float* y) {
  const int64_t longest = std::min(p.chunk, p.tokens);
  const int64_t group = p.value_heads / p.key_heads;
  scratch.prepare(longest * p.channels, kernels.delta_work_floats(p, longest), pool.threads());
  for (int64_t first = 0; first < p.tokens; first += p.chunk) {
    const int64_t tokens = std::min(p.chunk, p.tokens - first);
    float* c = scratch.shared();
    pool.parallel_for(p.channels, 512, [&](int64_t begin, int64_t end) {
      kernels.delta_conv(p, first, tokens, begin, end, c);
    });
    const bool chunked = tokens > kStepTokens;
    // A task shares the keys among the value heads of a key head, unless that
    // leaves too few tasks to keep the threads busy.
    const int64_t heads = chunked && p.key_heads >= 4 * pool.threads() ? group : 1;
    pool.parallel_for(p.value_heads / heads, 1, [&](int64_t begin, int64_t end) {
      FloatScratch::Slot slot(scratch);
      for (int64_t i = begin; i < end; ++i) {
        (chunked ? kernels.delta_chunk : kernels.delta_steps)(p, first, tokens, c, i * heads,
                                                              (i + 1) * heads, y, slot.data());
      }
    });
  }
}

}  // namespace headgate::kernels
