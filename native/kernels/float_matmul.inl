// Matrix products: C = c_scale * C + A B, and C = A B^T for a narrow B. See float_kernels.inl.

// A is given by two strides (so that it may be a transpose), B and C by a row
// stride. C is not read if c_scale is 0.
struct Product {
  const float* a;
  int64_t a_row, a_col;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  float c_scale;
};

// M rows times V vectors of C, at row m, column n. `part` is kLanes, or fewer for
// columns at the end of the matrix (then V is 1).
template <int M, int V, bool Part>
HEADGATE_INLINE void product_tile(const Product& p, int64_t depth, int64_t m, int64_t n,
                                  int64_t part) {
  Vec acc[M][V];
  const float* a = p.a + m * p.a_row;
  const float* b = p.b + n;
  float* c = p.c + m * p.c_row + n;
  const int64_t a_row = p.a_row, a_col = p.a_col, b_row = p.b_row;
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) {
      const float* from = c + i * p.c_row + j * kLanes;
      acc[i][j] = p.c_scale == 0.0f ? Vec{}
                  : Part            ? load_part(from, part) * p.c_scale
                                    : load(from) * p.c_scale;
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[V];
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) {
      row[j] = Part ? load_part(b, part) : load(b + j * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Vec x = splat(a[i * a_row]);
#pragma GCC unroll 16
      for (int j = 0; j < V; ++j) acc[i][j] += x * row[j];
    }
    a += a_col;
    b += b_row;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) {
      float* to = c + i * p.c_row + j * kLanes;
      if (Part) {
        store_part(to, acc[i][j], part);
      } else {
        store(to, acc[i][j]);
      }
    }
  }
}

template <int M, int V>
static __attribute__((noinline)) void product_block(const Product& p, int64_t depth, int64_t m,
                                                    int64_t n) {
  product_tile<M, V, false>(p, depth, m, n, kLanes);
}

// Columns [n, n + V * kLanes) of all rows, in tiles of nearly equal height.
template <int V>
static void product_columns(const Product& p, int64_t rows, int64_t depth, int64_t n) {
  // A single column of vectors needs more rows to hide the latency of the adds.
  constexpr int64_t kRows = V == 1 ? 8 : HEADGATE_FLOAT_TILE_ROWS;
  static_assert(kRows <= 8);
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t i = 0, m = 0; i < tiles; ++i) {
    const int64_t next = rows * (i + 1) / tiles;
    switch (next - m) {
      case 1:
        product_block<1, V>(p, depth, m, n);
        break;
      case 2:
        product_block<2, V>(p, depth, m, n);
        break;
      case 3:
        product_block<3, V>(p, depth, m, n);
        break;
      case 4:
        product_block<4, V>(p, depth, m, n);
        break;
      case 5:
        product_block < kRows<5 ? 1 : 5, V>(p, depth, m, n);
        break;
      case 6:
        product_block < kRows<6 ? 1 : 6, V>(p, depth, m, n);
        break;
      case 7:
        product_block < kRows<7 ? 1 : 7, V>(p, depth, m, n);
        break;
      default:
        product_block < kRows<8 ? 1 : 8, V>(p, depth, m, n);
        break;
    }
    m = next;
  }
}

static void product(const Product& p, int64_t rows, int64_t columns, int64_t depth) {
  constexpr int kVecs = HEADGATE_FLOAT_TILE_VECS;
  int64_t n = 0;
  for (; n + kVecs * kLanes <= columns; n += kVecs * kLanes) {
    product_columns<kVecs>(p, rows, depth, n);
  }
  for (; n + kLanes <= columns; n += kLanes) product_columns<1>(p, rows, depth, n);
  if (n < columns) {
    for (int64_t m = 0; m < rows; ++m) product_tile<1, 1, true>(p, depth, m, n, columns - n);
  }
}

constexpr int64_t kDotRows = 4;

// Sums of four vectors.
HEADGATE_INLINE Vec4 sums(Vec a, Vec b, Vec c, Vec d) {
  const Vec4 x = fold(a), y = fold(b), z = fold(c), w = fold(d);
  const Vec4 xy =
      __builtin_shufflevector(x, y, 0, 1, 4, 5) + __builtin_shufflevector(x, y, 2, 3, 6, 7);
  const Vec4 zw =
      __builtin_shufflevector(z, w, 0, 1, 4, 5) + __builtin_shufflevector(z, w, 2, 3, 6, 7);
  return __builtin_shufflevector(xy, zw, 0, 2, 4, 6) + __builtin_shufflevector(xy, zw, 1, 3, 5, 7);
}

// c[i][j] = a_i . b_j for Keys rows of a (stride a_row) and kDotRows rows of b.
// Rows of b are padded with zeros to whole vectors; those of a need not be. Rows of
// `fetch`, laid out like a, are fetched into the cache.
template <int Keys>
HEADGATE_INLINE void dots_tile(const float* a, int64_t a_row, const float* b, int64_t b_row,
                               int64_t depth, float* c, int64_t c_row, const float* fetch) {
  Vec acc[Keys][kDotRows];
#pragma GCC unroll 16
  for (int i = 0; i < Keys; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kDotRows; ++j) acc[i][j] = Vec{};
  }
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    Vec x[Keys];
#pragma GCC unroll 16
    for (int i = 0; i < Keys; ++i) {
      x[i] = load(a + i * a_row + k);
      __builtin_prefetch(fetch + i * a_row + k);
    }
#pragma GCC unroll 16
    for (int j = 0; j < kDotRows; ++j) {
      const Vec y = load(b + j * b_row + k);
#pragma GCC unroll 16
      for (int i = 0; i < Keys; ++i) acc[i][j] += x[i] * y;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Keys; ++i) {
    if (k < depth) {
      const Vec x = load_part(a + i * a_row + k, depth - k);
#pragma GCC unroll 16
      for (int j = 0; j < kDotRows; ++j) acc[i][j] += x * load(b + j * b_row + k);
    }
    const Vec4 dots = sums(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    __builtin_memcpy(c + i * c_row, &dots, sizeof dots);
  }
}

// C = A B^T where B has few rows, a multiple of kDotRows: one pass over A. Meanwhile
// rows of `next`, laid out like A, and the next rows of A are fetched: jumping from
// row to row, a long cache defeats the hardware's prefetching. A prefetch beyond the
// end is harmless.
static void dots(const float* a, int64_t a_row, int64_t a_rows, const float* b, int64_t b_row,
                 int64_t b_rows, int64_t depth, float* c, int64_t c_row, const float* next) {
  constexpr int kKeys = HEADGATE_FLOAT_TILE_VECS;  // more where there are more registers
  int64_t i = 0;
  for (; i + kKeys <= a_rows; i += kKeys) {
    const float* x = a + i * a_row;
    for (int64_t j = 0; j < b_rows; j += kDotRows) {
      dots_tile<kKeys>(x, a_row, b + j * b_row, b_row, depth, c + i * c_row + j, c_row,
                       j == 0 ? next + i * a_row : x + kKeys * a_row);
    }
  }
  for (; i < a_rows; ++i) {
    for (int64_t j = 0; j < b_rows; j += kDotRows) {
      dots_tile<1>(a + i * a_row, a_row, b + j * b_row, b_row, depth, c + i * c_row + j, c_row,
                   next + i * a_row);
    }
  }
}
