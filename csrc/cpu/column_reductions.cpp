// reduce_columns and add_columns: reductions of a chunk along its columns, one strip of columns at a time.
#include "reductions.h"

#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "score_block.h"

namespace mk {
namespace {

constexpr int64_t kAhead = 4;  // rows between the one that is added and the one that is fetched

template <class T>
MK_INLINE void reduce_column_strip(const T* raw, int64_t rows, int64_t M, int64_t j0, int64_t n, ScoreMap map,
                                   const int64_t* targets, Mask mask, ColumnAccumulators sums) {
  // The scores of a run of rows are kept: their rows of raw may be a power of two apart and displace each other.
  float s[kRun][kStrip], top[kStrip], zero[kStrip], part[kStrip], poison[kStrip] = {}, above[kStrip] = {};
  double total[kStrip], logits[kStrip] = {};
  const float* bias = map.bias ? map.bias + j0 : nullptr;
  const float excluded = bias ? kNegInf : std::numeric_limits<float>::quiet_NaN();
  for (int64_t j = 0; j < n; ++j) {
    top[j] = sums.maximum[j0 + j];
    total[j] = sums.total[j0 + j];
  }
  for (int64_t i0 = 0; i0 < rows; i0 += kRun) {
    const int64_t height = std::min(kRun, rows - i0);
    for (int64_t j = 0; j < n; ++j) zero[j] = top[j];
    for (int64_t i = 0; i < height; ++i) {
      const T* row = raw + (i0 + i) * M + j0;
      if (i0 + i + 1 < rows) prefetch(row + M, n);
      map_block(row, n, map, bias, s[i]);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) poison[j] += select(s[i][j] == excluded, 0.f, s[i][j] * 0.f);
      const int64_t own = targets ? targets[i0 + i] - j0 : -1;
      if (mask.any()) mask_block(s[i], n, mask.columns_from(j0), mask.id(i0 + i), own, mask.keep_target, kNegInf);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) top[j] = s[i][j] > top[j] ? s[i][j] : top[j];
    }
    for (int64_t j = 0; j < n; ++j) {
      const float before = zero[j];
      if (before > kNegInf && before < top[j]) total[j] *= std::exp(static_cast<double>(before) - top[j]);
    }
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      zero[j] = select(top[j] > kNegInf, top[j], 0.f);
      part[j] = 0;
    }
    for (int64_t i = 0; i < height; ++i) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) part[j] += exp_(s[i][j] - zero[j]);
      if (sums.logits) {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) logits[j] += select(s[i][j] > kNegInf, s[i][j], 0.f);
      }
      if (sums.rank) {
        const int64_t own = targets ? targets[i0 + i] - j0 : -1;
        if (own >= 0 && own < n) s[i][own] = kNegInf;  // a row does not count in the rank of its target column
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) above[j] += s[i][j] > sums.target[j0 + j] ? 1.f : 0.f;
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) total[j] += part[j];
  }
  for (int64_t j = 0; j < n; ++j) {
    sums.total[j0 + j] = total[j] + poison[j];
    sums.maximum[j0 + j] = top[j];
    if (sums.rank) sums.rank[j0 + j] += above[j];
    if (sums.logits) sums.logits[j0 + j] += logits[j];
  }
}

template <class T>
MK_INLINE void add_column_strip(const T* raw, int64_t rows, int64_t M, int64_t n, float* sums) {
  double total[kStrip] = {};
  float run[kStrip] = {};
  for (int64_t i = 0; i < rows; ++i) {
    if (i % kRun == 0) end_run(run, n, total);
    if (i + kAhead < rows) prefetch(raw + (i + kAhead) * M, n);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) run[j] += load(raw[i * M + j]);
  }
  end_run(run, n, total);
  for (int64_t j = 0; j < n; ++j) sums[j] += static_cast<float>(total[j]);
}

MK_KERNEL(ReduceColumnStrip, reduce_column_strip)
MK_KERNEL(AddColumnStrip, add_column_strip)

}  // namespace

template <class T>
void reduce_columns(Chunk<T> chunk, ScoreMap map, ColumnAccumulators sums, int threads) {
  const T* raw = chunk.raw;
  const int64_t rows = chunk.rows, M = chunk.columns;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t j0 = 0; j0 < M; j0 += kStrip)
    dispatch<ReduceColumnStrip>(raw, rows, M, j0, std::min(kStrip, M - j0), map, chunk.targets, chunk.mask, sums);
}

template <class T>
void add_columns(Chunk<T> chunk, float* sums, int threads) {
  const T* raw = chunk.raw;
  const int64_t rows = chunk.rows, M = chunk.columns;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t j0 = 0; j0 < M; j0 += kStrip)
    dispatch<AddColumnStrip>(raw + j0, rows, M, std::min(kStrip, M - j0), sums + j0);
}

#define MK_INSTANTIATE(T)                                                         \
  template void reduce_columns<T>(Chunk<T>, ScoreMap, ColumnAccumulators, int); \
  template void add_columns<T>(Chunk<T>, float*, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
