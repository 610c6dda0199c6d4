// Fused, vectorised passes over a chunk of scores. A row is walked in blocks that stay in the first-level cache:
// map the raw products to scores once, then reduce; partial sums are float32 within a block, float64 across blocks.
// Rows (or column strips) are the unit of parallel work and no sum crosses threads, so the bits do not depend on
// the number of threads.
#include "sweep.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "simd.h"

namespace mk {
namespace {

constexpr int64_t kBlock = 1024;
constexpr float kNegInf = -std::numeric_limits<float>::infinity();

template <class T>
MK_INLINE void map_block(const T* raw, int64_t n, ScoreMap map, const float* bias, float* s) {
  if (map.cap > 0) {
    const float inverse = 1.f / map.cap, outer = map.scale * map.cap;
    if (bias) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) s[j] = outer * tanh_((load(raw[j]) + bias[j]) * inverse);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) s[j] = outer * tanh_(load(raw[j]) * inverse);
    }
  } else if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) s[j] = map.scale * (load(raw[j]) + bias[j]);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) s[j] = map.scale * load(raw[j]);
  }
}

template <class T>
MK_INLINE void reduce_row(const T* raw, int64_t M, ScoreMap map, int64_t target, RowSums sums, int64_t i) {
  float s[kBlock];
  float maximum = sums.maximum[i];
  double total = sums.total[i], weighted = sums.weighted ? sums.weighted[i] : 0, above = 0;
  float poison = 0;  // 0 * s: NaN as soon as one score is not finite
  float at_target = 0;
  if (target >= 0 && target < M) {
    map_block(raw + target, 1, map, map.bias ? map.bias + target : nullptr, s);
    at_target = sums.target[i] = s[0];
  }
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    map_block(raw + j0, n, map, map.bias ? map.bias + j0 : nullptr, s);
    float top = kNegInf;
#pragma omp simd reduction(max : top) reduction(+ : poison)
    for (int64_t j = 0; j < n; ++j) {
      top = s[j] > top ? s[j] : top;
      poison += s[j] * 0.f;
    }
    if (top > maximum) {
      if (maximum > kNegInf) {
        const double shift = static_cast<double>(maximum) - top, factor = std::exp(shift);
        weighted = factor * (weighted + shift * total);
        total *= factor;
      }
      maximum = top;
    }
    float part = 0;
    if (sums.weighted) {
      float part_weighted = 0;
#pragma omp simd reduction(+ : part, part_weighted)
      for (int64_t j = 0; j < n; ++j) {
        const float x = s[j] - maximum, e = exp_(x);
        part += e;
        part_weighted += e * x;
      }
      weighted += part_weighted;
    } else {
#pragma omp simd reduction(+ : part)
      for (int64_t j = 0; j < n; ++j) part += exp_(s[j] - maximum);
    }
    total += part;
    if (sums.rank) {
      int32_t count = 0;
#pragma omp simd reduction(+ : count)
      for (int64_t j = 0; j < n; ++j) count += s[j] > at_target ? 1 : 0;
      above += count;
    }
  }
  sums.maximum[i] = maximum;
  sums.total[i] = total + poison;
  if (sums.weighted) sums.weighted[i] = weighted;
  if (sums.rank) sums.rank[i] += static_cast<float>(above);
}

template <class T>
MK_CLONES void reduce_rows_range(const T* raw, int64_t begin, int64_t end, int64_t M, ScoreMap map,
                                 const int64_t* targets, RowSums sums) {
  for (int64_t i = begin; i < end; ++i) reduce_row(raw + i * M, M, map, targets ? targets[i] : -1, sums, i);
}

constexpr int64_t kStrip = 256;  // columns a thread takes at a time: a strip of some hundred rows fits its cache

template <class T>
MK_CLONES void reduce_column_strip(const T* raw, int64_t rows, int64_t M, int64_t j0, int64_t n, ScoreMap map,
                                   float* col_max, double* col_sum, const float* column_target, float* rank,
                                   int64_t first_row) {
  float s[kStrip], top[kStrip], part[kStrip], above[kStrip];
  const float* bias = map.bias ? map.bias + j0 : nullptr;
  for (int64_t j = 0; j < n; ++j) {
    top[j] = col_max[j0 + j];
    part[j] = above[j] = 0;
  }
  for (int64_t i = 0; i < rows; ++i) {
    map_block(raw + i * M + j0, n, map, bias, s);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) top[j] = s[j] > top[j] ? s[j] : top[j];
  }
  for (int64_t i = 0; i < rows; ++i) {
    map_block(raw + i * M + j0, n, map, bias, s);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) part[j] += exp_(s[j] - top[j]) + s[j] * 0.f;
    if (rank) {
      const int64_t own = first_row + i - j0;  // the pair itself never beats itself
      if (own >= 0 && own < n) s[own] = kNegInf;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) above[j] += s[j] > column_target[j0 + j] ? 1.f : 0.f;
    }
  }
  for (int64_t j = 0; j < n; ++j) {
    const float before = col_max[j0 + j];
    const double factor = before > kNegInf ? std::exp(static_cast<double>(before) - top[j]) : 0.;
    col_sum[j0 + j] = (before > kNegInf ? col_sum[j0 + j] * factor : 0.) + part[j];
    col_max[j0 + j] = top[j];
    if (rank) rank[j0 + j] += above[j];
  }
}

constexpr int64_t kTileRows = 64;  // a tile of kTileRows x kBlock scores stays in the second-level cache

template <class T>
MK_CLONES void reduce_tile(const T* raw, int64_t rows, int64_t n, int64_t stride, float scale, float reference,
                           float* row_part, float* col_part) {
  std::fill(col_part, col_part + n, 0.f);
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = raw + i * stride;
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t j = 0; j < n; ++j) {
      const float e = exp_(scale * load(row[j]) - reference);
      part += e;
      col_part[j] += e;
    }
    row_part[i] = part;
  }
}

template <class T>
MK_CLONES void weigh_bounded_row(T* row, int64_t M, float scale, float reference, int64_t target, float alpha,
                                 const float* beta, float d, double* d_scale) {
  const float at_target = target >= 0 ? load(row[target]) : 0.f;
  double against_raw = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    if (d_scale) {
      float part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t j = j0; j < j0 + n; ++j) {
        const float x = load(row[j]), g = (alpha + beta[j]) * exp_(scale * x - reference);
        part += g * x;
        store(row + j, g * scale);
      }
      against_raw += part;
    } else {
#pragma omp simd
      for (int64_t j = j0; j < j0 + n; ++j)
        store(row + j, (alpha + beta[j]) * exp_(scale * load(row[j]) - reference) * scale);
    }
  }
  if (target >= 0) {
    const float g = (alpha + beta[target]) * exp_(scale * at_target - reference) + d;
    store(row + target, g * scale);
    against_raw += static_cast<double>(d) * at_target;
  }
  if (d_scale) *d_scale = against_raw;
}

template <class T>
MK_CLONES void weigh_range(T* raw, int64_t begin, int64_t end, int64_t M, ScoreMap map, const int64_t* targets,
                           const float* a, Lse r, const float* b, Lse c, const float* d, double* d_scale) {
  float s[kBlock], g[kBlock];
  for (int64_t i = begin; i < end; ++i) {
    T* row = raw + i * M;
    const int64_t target = targets ? targets[i] : -1;
    const float ai = a[i], ri = r.high[i], ri_low = r.low[i];
    double against_score = 0;
    for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
      const int64_t n = std::min(kBlock, M - j0);
      const float* bias = map.bias ? map.bias + j0 : nullptr;
      map_block(row + j0, n, map, bias, s);
      if (b) {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j)
          g[j] = ai * exp_((s[j] - ri) - ri_low) + b[j0 + j] * exp_((s[j] - c.high[j0 + j]) - c.low[j0 + j]);
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) g[j] = ai * exp_((s[j] - ri) - ri_low);
      }
      if (d && target >= j0 && target < j0 + n) g[target - j0] += d[i];
      if (d_scale) {
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t j = 0; j < n; ++j) part += g[j] * s[j];
        against_score += part;
      }
      if (map.cap > 0) {  // tanh' = 1 - tanh^2, and s / (scale cap) is the tanh
        const float inverse = 1.f / (map.scale * map.cap);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const float t = s[j] * inverse;
          store(row + j0 + j, g[j] * map.scale * (1.f - t * t));
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) store(row + j0 + j, g[j] * map.scale);
      }
    }
    if (d_scale) d_scale[i] = against_score / map.scale;
  }
}

}  // namespace

template <class T>
void reduce_rows(const T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, RowSums sums,
                 int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; ++i) reduce_rows_range(raw, i, i + 1, M, map, targets, sums);
}

template <class T>
void reduce_bounded(const T* raw, int64_t rows, int64_t M, float scale, float reference, const int64_t* targets,
                    double* row_total, float* target_score, double* col_total, int threads) {
  const int64_t down = (rows + kTileRows - 1) / kTileRows, across = (M + kBlock - 1) / kBlock;
  std::vector<float> row_parts(across * rows), col_parts(down * M);  // one entry a tile: no sum crosses threads
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (int64_t u = 0; u < down; ++u)
    for (int64_t v = 0; v < across; ++v) {
      const int64_t i0 = u * kTileRows, j0 = v * kBlock;
      reduce_tile(raw + i0 * M + j0, std::min(kTileRows, rows - i0), std::min(kBlock, M - j0), M, scale, reference,
                  row_parts.data() + v * rows + i0, col_parts.data() + u * M + j0);
    }
  for (int64_t v = 0; v < across; ++v)
    for (int64_t i = 0; i < rows; ++i) row_total[i] += row_parts[v * rows + i];
  for (int64_t u = 0; u < down; ++u)
    for (int64_t j = 0; j < M; ++j) col_total[j] += col_parts[u * M + j];
  for (int64_t i = 0; i < rows; ++i) target_score[i] = scale * load(raw[i * M + targets[i]]);
}

template <class T>
void reduce_columns(const T* raw, int64_t rows, int64_t M, ScoreMap map, float* col_max, double* col_sum,
                    const float* column_target, float* rank, int64_t first_row, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t j0 = 0; j0 < M; j0 += kStrip)
    reduce_column_strip(raw, rows, M, j0, std::min(kStrip, M - j0), map, col_max, col_sum, column_target, rank,
                        first_row);
}

template <class T>
void weigh(T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, const float* a, Lse r,
           const float* b, Lse c, const float* d, double* d_scale, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; ++i) weigh_range(raw, i, i + 1, M, map, targets, a, r, b, c, d, d_scale);
}

template <class T>
void weigh_bounded(T* raw, int64_t rows, int64_t M, float scale, float reference, const int64_t* targets,
                   const float* alpha, const float* beta, const float* d, double* d_scale, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; ++i)
    weigh_bounded_row(raw + i * M, M, scale, reference, d ? targets[i] : -1, alpha[i], beta, d ? d[i] : 0.f,
                      d_scale ? d_scale + i : nullptr);
}

#define MK_INSTANTIATE(T)                                                                                        \
  template void reduce_rows<T>(const T*, int64_t, int64_t, ScoreMap, const int64_t*, RowSums, int);              \
  template void reduce_columns<T>(const T*, int64_t, int64_t, ScoreMap, float*, double*, const float*, float*,   \
                                  int64_t, int);                                                                 \
  template void reduce_bounded<T>(const T*, int64_t, int64_t, float, float, const int64_t*, double*, float*,     \
                                  double*, int);                                                                 \
  template void weigh<T>(T*, int64_t, int64_t, ScoreMap, const int64_t*, const float*, Lse, const float*, Lse,   \
                         const float*, double*, int);                                                            \
  template void weigh_bounded<T>(T*, int64_t, int64_t, float, float, const int64_t*, const float*, const float*, \
                                 const float*, double*, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
