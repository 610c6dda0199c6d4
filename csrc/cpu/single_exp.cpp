// Forward and backward kernels with one exponential per score, for bounded scores.
#include "single_exp.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "score_block.h"

namespace mk {
namespace {

constexpr int64_t kTileRows = 64;  // a tile of kTileRows x kBlock scores stays in the second-level cache

template <class T>
MK_INLINE void reduce_tile(const T* raw, int64_t rows, int64_t n, int64_t stride, float scale, float* row_part,
                           float* col_part) {
  float run[kBlock] = {};
  std::fill(col_part, col_part + n, 0.f);
  for (int64_t i = 0; i < rows; ++i) {
    if (i % kRun == 0) end_run(run, n, col_part);
    const T* row = raw + i * stride;
    if (i + 1 < rows) prefetch(row + stride, n);
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float e = exp_(scale * load(row[j]));
      terms[j] = e;
      run[j] += e;
    }
    row_part[i] = sum(terms, n);
  }
  end_run(run, n, col_part);
}

// targets, mask.rows and mask.columns belong to the tile, which begins at column j0; targets stay unmasked.
template <class T>
MK_INLINE void reduce_masked_tile(const T* raw, int64_t rows, int64_t n, int64_t stride, float scale,
                                  const int64_t* targets, int64_t j0, Mask mask, float* row_part, float* col_part) {
  float run[kBlock] = {};
  std::fill(col_part, col_part + n, 0.f);
  for (int64_t i = 0; i < rows; ++i) {
    if (i % kRun == 0) end_run(run, n, col_part);
    const T* row = raw + i * stride;
    if (i + 1 < rows) prefetch(row + stride, n);
    const int32_t id = mask.rows[i];
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float e = select(mask.columns[j] == id, 0.f, exp_(scale * load(row[j])));
      terms[j] = e;
      run[j] += e;
    }
    float part = sum(terms, n);
    const int64_t target = targets[i] - j0;
    if (target >= 0 && target < n && mask.columns[target] == id) {
      const float e = exp_(scale * load(row[target]));
      part += e;
      run[target] += e;
    }
    row_part[i] = part;
  }
  end_run(run, n, col_part);
}

template <bool masked, class T>
MK_INLINE float single_exp_grad_block(T* row, int64_t n, float scale, const int32_t* columns, int32_t id,
                                    float row_factor, const float* column_factor, bool sums_score_grad) {
  if (sums_score_grad) {
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float x = load(row[j]), weight = (row_factor + column_factor[j]) * exp_(scale * x);
      const float g = masked ? select(columns[j] == id, 0.f, weight) : weight;
      terms[j] = g * x;
      store(row + j, g * scale);
    }
    return sum(terms, n);
  }
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float g = (row_factor + column_factor[j]) * exp_(scale * load(row[j])) * scale;
    store(row + j, masked ? select(columns[j] == id, 0.f, g) : g);
  }
  return 0.f;
}

template <class T>
MK_INLINE void single_exp_grad_row(T* row, int64_t M, float scale, int64_t target,
                                 const int32_t* columns, int32_t id, float row_factor, const float* column_factor, float target_grad,
                                 double* scale_grad) {
  const float at_target = load(row[target]);
  const float own = (row_factor + column_factor[target]) * exp_(scale * at_target);
  double sum_of_row = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    if (columns)
      sum_of_row += single_exp_grad_block<true>(row + j0, n, scale, columns + j0, id, row_factor, column_factor + j0, scale_grad);
    else
      sum_of_row += single_exp_grad_block<false>(row + j0, n, scale, columns, id, row_factor, column_factor + j0, scale_grad);
  }
  store(row + target, (own + target_grad) * scale);
  const float masked_own = columns && columns[target] == id ? own : 0.f;
  if (scale_grad) *scale_grad = sum_of_row + (static_cast<double>(target_grad) + masked_own) * at_target;
}

MK_KERNEL(ReduceTile, reduce_tile)
MK_KERNEL(ReduceMaskedTile, reduce_masked_tile)
MK_KERNEL(SingleExpGradRow, single_exp_grad_row)

}  // namespace

template <class T>
void single_exp_reduce(Chunk<T> chunk, SingleExpSums sums, int threads) {
  const T* raw = chunk.raw;
  const int64_t rows = chunk.rows, M = chunk.columns;
  const Mask mask = chunk.mask;
  const int64_t down = (rows + kTileRows - 1) / kTileRows, across = (M + kBlock - 1) / kBlock;
  std::vector<float> row_parts(across * rows), col_parts(down * M);  // one entry per tile: no sum crosses threads
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (int64_t u = 0; u < down; ++u)
    for (int64_t v = 0; v < across; ++v) {
      const int64_t i0 = u * kTileRows, j0 = v * kBlock;
      const int64_t height = std::min(kTileRows, rows - i0), width = std::min(kBlock, M - j0);
      float *row_part = row_parts.data() + v * rows + i0, *col_part = col_parts.data() + u * M + j0;
      const T* tile = raw + i0 * M + j0;
      if (mask.rows)
        dispatch<ReduceMaskedTile>(tile, height, width, M, sums.scale, chunk.targets + i0, j0,
                                   Mask{mask.rows + i0, mask.columns + j0, true}, row_part, col_part);
      else
        dispatch<ReduceTile>(tile, height, width, M, sums.scale, row_part, col_part);
    }
  for (int64_t v = 0; v < across; ++v)
    for (int64_t i = 0; i < rows; ++i) sums.row_total[i] += row_parts[v * rows + i];
  for (int64_t u = 0; u < down; ++u)
    for (int64_t j = 0; j < M; ++j) sums.column_total[j] += col_parts[u * M + j];
  for (int64_t i = 0; i < rows; ++i) sums.target_score[i] = sums.scale * load(raw[i * M + chunk.targets[i]]);
}

template <class T>
void single_exp_score_grad(Chunk<T> chunk, SingleExpTerms terms, int threads) {
  const Mask mask = chunk.mask;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < chunk.rows; ++i)
    dispatch<SingleExpGradRow>(chunk.row(i), chunk.columns, terms.scale, chunk.targets[i],
                               mask.rows ? mask.columns : nullptr, mask.rows ? mask.rows[i] : 0, terms.row_factor[i],
                               terms.column_factor, terms.target_grad ? terms.target_grad[i] : 0.f,
                               terms.scale_grad ? terms.scale_grad + i : nullptr);
}

#define MK_INSTANTIATE(T)                                                \
  template void single_exp_reduce<T>(Chunk<T>, SingleExpSums, int); \
  template void single_exp_score_grad<T>(Chunk<T>, SingleExpTerms, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
