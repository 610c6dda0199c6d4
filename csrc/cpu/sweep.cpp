// Fused, vectorised passes over a chunk of scores. A row is walked in blocks that stay in the first-level cache:
// map the raw products to scores once, then reduce; partial sums are float32 within a block, float64 across blocks.
// Rows (or column strips) are the unit of parallel work and no sum crosses threads, so the bits do not depend on
// the number of threads.
#include "sweep.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

struct RowSums {
  float lse, lse_low, target, mean, rank;
};

template <class T>
MK_INLINE RowSums reduce_row(const T* raw, int64_t M, ScoreMap map, int64_t target, bool want_mean, bool want_rank) {
  float s[kBlock];
  float at_target = 0, maximum = kNegInf;
  double sum = 0, weighted = 0, above = 0;  // weighted: sum of e^(s - maximum) (s - maximum)
  float poison = 0;                         // 0 * s: NaN as soon as one score is not finite
  if (target >= 0) {
    map_block(raw + target, 1, map, map.bias ? map.bias + target : nullptr, s);
    at_target = s[0];
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
        weighted = factor * (weighted + shift * sum);
        sum *= factor;
      }
      maximum = top;
    }
    float part = 0;
    if (want_mean) {
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
    sum += part;
    if (want_rank) {
      int32_t count = 0;
#pragma omp simd reduction(+ : count)
      for (int64_t j = 0; j < n; ++j) count += s[j] > at_target ? 1 : 0;
      above += count;
    }
  }
  const double lse = maximum + std::log(sum);
  const float high = static_cast<float>(lse);
  return {high + poison, static_cast<float>(lse - high), at_target + poison, static_cast<float>(maximum + weighted / sum) + poison,
          static_cast<float>(above) + poison};
}

template <class T>
MK_CLONES void reduce_rows_range(const T* raw, int64_t begin, int64_t end, int64_t M, ScoreMap map,
                                 const int64_t* targets, Lse row_lse, float* target_score, float* mean_score,
                                 float* rank) {
  for (int64_t i = begin; i < end; ++i) {
    const RowSums sums = reduce_row(raw + i * M, M, map, targets ? targets[i] : -1, mean_score, rank);
    row_lse.high[i] = sums.lse;
    row_lse.low[i] = sums.lse_low;
    if (target_score) target_score[i] = sums.target;
    if (mean_score) mean_score[i] = sums.mean;
    if (rank) rank[i] = sums.rank;
  }
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
void reduce_rows(const T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, Lse row_lse,
                 float* target_score, float* mean_score, float* rank, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; ++i)
    reduce_rows_range(raw, i, i + 1, M, map, targets, row_lse, target_score, mean_score, rank);
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

#define MK_INSTANTIATE(T)                                                                                       \
  template void reduce_rows<T>(const T*, int64_t, int64_t, ScoreMap, const int64_t*, Lse, float*, float*,       \
                               float*, int);                                                                    \
  template void reduce_columns<T>(const T*, int64_t, int64_t, ScoreMap, float*, double*, const float*, float*,  \
                                  int64_t, int);                                                                \
  template void weigh<T>(T*, int64_t, int64_t, ScoreMap, const int64_t*, const float*, Lse,                     \
                         const float*, Lse, const float*, double*, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
