// A part of a row of a quantised matrix, and how it is decoded. Included after the
// primitives V of one instruction set; see quant_rows.inl.
#pragma once

#include "kernels/quant.h"
#include "kernels/quant_common.h"

namespace headgate::kernels {
namespace {

constexpr int kTile = 16;  // blocks decoded at a time: 1 KiB of codes, which L1 keeps

// QuantMatrix::padded() without a division.
template <int G>
int64_t padded_cols(int64_t cols) {
  constexpr int64_t kBlock = G > 64 ? G : 64;
  return (cols + kBlock - 1) & -kBlock;
}

// Where one block lies in each plane.
struct Planes {
  const uint8_t* q2;
  const uint8_t* q3;
  const uint8_t* q4;
  const uint8_t* q8;
};

// s * (c' * step + middle) + b  =  (s * step) * c' + (b + s * middle)
struct Cell {
  float step, middle;
};

inline Cell cell_of(const QuantMatrix& w) {
  const float step = static_cast<float>(1 << (w.stored_bits - w.used_bits));
  return {step, (step - 1) / 2};
}

template <int P>
Planes planes_at(const QuantMatrix& w, int64_t block) {
  Planes at{w.q2 + block * 16, nullptr, nullptr, nullptr};
  if constexpr (P >= 3) at.q3 = w.q3 + block * 8;
  if constexpr (P >= 4) at.q4 = w.q4 + block * 8;
  if constexpr (P == 8) at.q8 = w.q8 + block * 32;
  return at;
}

template <int P>
void next_block(Planes& at) {
  at.q2 += 16;
  if constexpr (P >= 3) at.q3 += 8;
  if constexpr (P >= 4) at.q4 += 8;
  if constexpr (P == 8) at.q8 += 32;
}

inline int blocks_in_tile(int64_t first, int64_t blocks) {
  return blocks - first < kTile ? static_cast<int>(blocks - first) : kTile;
}

// The scales and biases of one row's part of a tile, as floats.
struct RowScales {
  alignas(64) float scale[2][kTile];  // of each block, or of its two halves (group 32)
  alignas(64) float bias[2 * kTile];  // of each group
};

// With its codes.
struct RowTile : RowScales {
  alignas(64) uint8_t codes[kTile * 64];
};

// Fetches what the tile kAhead tiles later has in a plane of `bytes` per block; the
// rows of a plane follow each other, so that is soon needed even across rows. With up
// to six streams per thread the hardware alone reaches about two thirds of the speed.
template <int Bytes>
HEADGATE_INLINE void fetch_ahead(const void* block) {
  constexpr int kAhead = 8;
  const auto at = reinterpret_cast<uintptr_t>(block) + kAhead * kTile * Bytes;
  HEADGATE_UNROLL
  for (int i = 0; i < kTile * Bytes; i += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(at + static_cast<uintptr_t>(i)));
  }
}

// The scales of blocks [first, first + n) of one row. `shift` is added to the biases in
// units of one code step: what dot() has subtracted from every code.
template <int G>
HEADGATE_INLINE void load_scales(const QuantMatrix& w, int64_t row, int64_t first, int n,
                                 float shift, RowScales& tile) {
  constexpr int kGroups = kTile * 64 / G;
  const Cell cell = cell_of(w);
  const int64_t base = row * (padded_cols<G>(w.cols) / G) + first * 64 / G;
  const int groups = n * 64 / G;
  alignas(64) float scale[kGroups < V::kLanes ? V::kLanes : kGroups];
  const auto step = V::set1(cell.step);
  const auto middle = V::set1(cell.middle + shift * cell.step);
  for (int i = 0; i < kGroups; i += V::kLanes) {
    const auto s = V::halves_n(w.scales + base + i, groups - i, w.half);
    const auto b = V::halves_n(w.biases + base + i, groups - i, w.half);
    V::store(G == 64 ? tile.scale[0] + i : scale + i, V::mul(s, step));
    V::store(tile.bias + i, V::fma(s, middle, b));
  }
  if constexpr (G == 64) return;
  for (int i = 0; i < kTile; ++i) {
    if constexpr (G == 32) {
      tile.scale[0][i] = scale[2 * i];
      tile.scale[1][i] = scale[2 * i + 1];
    } else {
      tile.scale[0][i] = scale[i * 64 / G];
    }
  }
}

// Scales as above, and decoded codes.
template <int P, int G>
HEADGATE_INLINE void load_tile(const QuantMatrix& w, int64_t row, int64_t first, int n, float shift,
                               RowTile& tile) {
  load_scales<G>(w, row, first, n, shift, tile);
  Planes at = planes_at<P>(w, row * (padded_cols<G>(w.cols) / 64) + first);
  fetch_ahead<16>(at.q2);
  if constexpr (P >= 3) fetch_ahead<8>(at.q3);
  if constexpr (P >= 4) fetch_ahead<8>(at.q4);
  if constexpr (P == 8) fetch_ahead<32>(at.q8);
  for (int i = 0; i < n; ++i) {
    V::template decode<P>(at, tile.codes + i * 64);
    next_block<P>(at);
  }
}

}  // namespace
}  // namespace headgate::kernels
