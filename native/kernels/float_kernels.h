// float32 arithmetic between the matrix products: norms, routing, attention and
// the gated delta rule. One table of single-threaded functions per instruction
// set; float_ops.h divides the work among threads.
//
// All arrays are float32, row-major and without gaps unless a stride is given.
// Nothing here allocates, throws or knows about threads. Work areas come from the
// caller, sized by the *_floats functions; they need no particular alignment or
// contents. Results depend on the instruction set (order of summation, fused
// multiply-add), not on how the caller divides the ranges.
//
// The structs are plain data without member functions on purpose: this header is
// compiled with different instruction-set flags, and an inline function would be
// merged by the linker into whichever copy it met first.
#pragma once

#include <cstdint>

#include "kernels/cpu.h"

namespace headgate::kernels {

// Causal grouped-query attention of `tokens` new tokens, the first of them at
// position `start` of a cache that holds rows [0, start) already.
struct Attention {
  const float* q = nullptr;       // [tokens][heads][head_dim], or if `gated`
                                  // [tokens][heads][2][head_dim]: query, then gate
  const float* k = nullptr;       // [tokens][kv_heads][head_dim]
  const float* v = nullptr;       // [tokens][kv_heads][head_dim]
  const float* q_norm = nullptr;  // [head_dim] RMS norm weight, or null: no norm
  const float* k_norm = nullptr;
  const float* cos = nullptr;  // [tokens][rotary / 2]
  const float* sin = nullptr;  // [tokens][rotary / 2]
  float* k_cache = nullptr;    // [>= start + tokens][kv_heads][head_dim]
  float* v_cache = nullptr;    // keys are stored normalised and rotated
  int64_t tokens = 0, start = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;  // heads % kv_heads == 0
  int64_t rotary = 0;                             // even, <= head_dim
  float eps = 1e-6f, scale = 1.0f;
  bool gated = false;
};

// Queries that share a key-value head: `rows` = tokens * group rows, row
// r = (token - first) * group + head within the group.
struct AttentionTile {
  int64_t first = 0, tokens = 0;  // of Attention::tokens
  int64_t kv_head = 0;
};

// Gated delta rule (https://arxiv.org/abs/2412.06464) behind a short causal
// convolution. channels = 2 * key_heads * dk + value_heads * dv: all queries, all
// keys, all values. Value head h reads key head h / (value_heads / key_heads).
struct DeltaNet {
  const float* qkv = nullptr;        // [tokens][channels], before the convolution
  const float* z = nullptr;          // [tokens][value_heads][dv], output gate
  const float* b = nullptr;          // [tokens][value_heads]; beta = sigmoid(b)
  const float* a = nullptr;          // [tokens][value_heads]
  const float* conv_w = nullptr;     // [channels][taps], oldest tap first
  const float* neg_exp_a = nullptr;  // [value_heads], -exp(A_log)
  const float* dt_bias = nullptr;    // [value_heads]; g = neg_exp_a * softplus(a + dt_bias)
  const float* norm_w = nullptr;     // [dv]
  float* conv_state = nullptr;       // [channels][taps - 1], oldest first; updated
  float* state = nullptr;            // [value_heads][dk][dv]; updated
  int64_t tokens = 0, channels = 0;
  int64_t key_heads = 0, value_heads = 0, dk = 0, dv = 0;  // value_heads % key_heads == 0
  int64_t taps = 4;                                        // 2..8
  int64_t chunk = 64;                                      // tokens per chunk, >= 1
  float eps = 1e-6f;                                       // of the output norm
};

struct FloatKernels {
  // y = x * rsqrt(mean(x^2) + eps) * w for each of `rows` rows.
  void (*rms_norm)(const float* x, const float* w, int64_t rows, int64_t width, float eps,
                   float* y);
  // y = silu(gate) * up, n values. y may be gate or up.
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* y);
  // out = base + sigmoid(gate_logit[row]) * y; a factor of 1 if gate_logit is null.
  void (*add_scaled)(const float* base, const float* y, const float* gate_logit, int64_t rows,
                     int64_t width, float* out);
  // The k <= experts largest softmax probabilities of each row, largest first;
  // equal logits in order of index, NaN last. Divided by their sum if renormalise.
  void (*route)(const float* logits, int64_t rows, int64_t experts, int64_t k, bool renormalise,
                int32_t* ids, float* weights);

  // Normalises, rotates and stores the keys, and copies the values, of new tokens
  // [begin, end) into the caches.
  void (*attention_store)(const Attention& p, int64_t begin, int64_t end);
  // Floats that the queries of a tile of `rows` rows take once prepared, the partial
  // result of such a tile takes, and attention_attend needs as work area.
  int64_t (*attention_query_floats)(const Attention& p, int64_t rows);
  int64_t (*attention_part_floats)(const Attention& p, int64_t rows);
  int64_t (*attention_work_floats)(const Attention& p, int64_t rows);
  // Normalised, rotated and scaled queries of a tile.
  void (*attention_queries)(const Attention& p, const AttentionTile& tile, float* queries);
  // Attention of a tile over cache rows [begin, end), to be merged.
  void (*attention_attend)(const Attention& p, const AttentionTile& tile, const float* queries,
                           int64_t begin, int64_t end, float* part, float* work);
  // Merges `parts` consecutive partial results in their order, applies the gate and
  // writes rows [begin, end) of the tile to y [tokens][heads][head_dim].
  void (*attention_merge)(const Attention& p, const AttentionTile& tile, float* part, int64_t parts,
                          int64_t begin, int64_t end, float* y);

  // Convolution and SiLU of channels [begin, end) of tokens [first, first + tokens);
  // updates their conv_state. c is [tokens][channels].
  void (*delta_conv)(const DeltaNet& p, int64_t first, int64_t tokens, int64_t begin, int64_t end,
                     float* c);
  // Work area of the two functions below for blocks of up to `tokens` tokens.
  int64_t (*delta_work_floats)(const DeltaNet& p, int64_t tokens);
  // The rest, for value heads [begin, end) that share a key head: the recurrence
  // token by token, or one chunk as matrix products. y is [all tokens][value_heads][dv].
  void (*delta_steps)(const DeltaNet& p, int64_t first, int64_t tokens, const float* c,
                      int64_t begin, int64_t end, float* y, float* work);
  void (*delta_chunk)(const DeltaNet& p, int64_t first, int64_t tokens, const float* c,
                      int64_t begin, int64_t end, float* y, float* work);
};

// Throws std::invalid_argument if `isa` is not in this build or cannot run here.
const FloatKernels& float_kernels(Isa isa);

}  // namespace headgate::kernels
