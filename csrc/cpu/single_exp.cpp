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
MK_INLINE float sum_of_squares(const T* row, int64_t n) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < n; ++j) total += load(row[j]) * load(row[j]);
  return total;
}

// A tile of raw scores whose first column is j0. What belongs to rows or columns begins at the tile's.
template <class T>
struct Tile {
  const T* raw;
  int64_t rows, columns, stride;
  float scale;
  const int64_t* targets;
  int64_t j0;
  Mask mask;
  const float *target_score, *column_target;
};

// The sums of a tile; the ranks are null if none are counted.
struct TileSums {
  float *row_total, *row_rank, *column_total, *column_rank;
};

template <bool masked, bool ranked, class T>
MK_INLINE void reduce_tile(Tile<T> tile, TileSums sums) {
  const int64_t n = tile.columns;
  const int32_t* ids = tile.mask.columns;
  const float* column_target = tile.column_target;
  float run[kBlock] = {}, above[kBlock] = {};
  std::fill(sums.column_total, sums.column_total + n, 0.f);
  for (int64_t i = 0; i < tile.rows; ++i) {
    if (i % kRun == 0) end_run(run, n, sums.column_total);
    const T* row = tile.raw + i * tile.stride;
    if (i + 1 < tile.rows) prefetch(row + tile.stride, n);
    const int32_t id = masked ? tile.mask.rows[i] : 0;
    const float at_target = ranked ? tile.target_score[i] : 0.f;
    float terms[kBlock];
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t j = 0; j < n; ++j) {
      const float s = tile.scale * load(row[j]), weight = exp_(s);
      const float e = masked ? select(ids[j] == id, 0.f, weight) : weight;
      terms[j] = e;
      run[j] += e;
      if (ranked) {
        const float counted = masked ? select(ids[j] == id, kNegInf, s) : s;
        above[j] += select(counted > column_target[j], 1.f, 0.f);
        count += counted > at_target ? 1 : 0;
      }
    }
    float total = sum(terms, n);
    const int64_t own = tile.targets[i] - tile.j0;
    if (own >= 0 && own < n) {
      if (masked && ids[own] == id) {  // the target stays unmasked
        const float e = exp_(tile.scale * load(row[own]));
        total += e;
        run[own] += e;
      } else if (ranked && at_target > column_target[own]) {  // a row does not count in the rank of its target column
        above[own] -= 1.f;
      }
    }
    sums.row_total[i] = total;
    if (ranked) sums.row_rank[i] = static_cast<float>(count);
  }
  end_run(run, n, sums.column_total);
  if (ranked) std::copy(above, above + n, sums.column_rank);
}

template <class T>
MK_INLINE void reduce_any_tile(Tile<T> tile, TileSums sums) {
  if (tile.mask.rows)
    sums.row_rank ? reduce_tile<true, true>(tile, sums) : reduce_tile<true, false>(tile, sums);
  else
    sums.row_rank ? reduce_tile<false, true>(tile, sums) : reduce_tile<false, false>(tile, sums);
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

MK_KERNEL(SumOfSquares, sum_of_squares)
MK_KERNEL(ReduceTile, reduce_any_tile)
MK_KERNEL(SingleExpGradRow, single_exp_grad_row)

}  // namespace

template <class T>
float largest_norm(States<T> operand, int threads) {
  float top = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : top)
  for (int64_t i = 0; i < operand.rows; ++i) {
    const float squares = dispatch<SumOfSquares>(operand.hidden + i * operand.width, operand.width);
    top = std::isnan(squares) ? std::numeric_limits<float>::infinity() : std::max(top, squares);
  }
  return std::sqrt(top);
}

template <class T>
void single_exp_reduce(Chunk<T> chunk, SingleExpSums sums, int threads) {
  const T* raw = chunk.raw;
  const int64_t rows = chunk.rows, M = chunk.columns;
  const Mask mask = chunk.mask;
  const int64_t down = (rows + kTileRows - 1) / kTileRows, across = (M + kBlock - 1) / kBlock;
  const bool ranked = sums.row_rank != nullptr;
  const int64_t of_rows = across * rows, of_columns = down * M;
  // one entry per tile: no sum crosses threads
  std::vector<float> row_parts(of_rows * (ranked ? 2 : 1)), col_parts(of_columns * (ranked ? 2 : 1));
  for (int64_t i = 0; i < rows; ++i) sums.target_score[i] = sums.scale * load(raw[i * M + chunk.targets[i]]);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (int64_t u = 0; u < down; ++u)
    for (int64_t v = 0; v < across; ++v) {
      const int64_t i0 = u * kTileRows, j0 = v * kBlock;
      const int64_t height = std::min(kTileRows, rows - i0), width = std::min(kBlock, M - j0);
      float *row_part = row_parts.data() + v * rows + i0, *col_part = col_parts.data() + u * M + j0;
      const Mask tile_mask = mask.rows ? Mask{mask.rows + i0, mask.columns + j0, true} : Mask{};
      const Tile<T> tile{raw + i0 * M + j0, height, width, M, sums.scale, chunk.targets + i0, j0, tile_mask,
                         sums.target_score + i0, ranked ? sums.column_target + j0 : nullptr};
      dispatch<ReduceTile>(
          tile, TileSums{row_part, ranked ? row_part + of_rows : nullptr, col_part, ranked ? col_part + of_columns : nullptr});
    }
  const auto add = [](const float* parts, int64_t count, int64_t n, auto* total) {
    for (int64_t part = 0; part < count; ++part)
      for (int64_t i = 0; i < n; ++i) total[i] += parts[part * n + i];
  };
  add(row_parts.data(), across, rows, sums.row_total);
  add(col_parts.data(), down, M, sums.column_total);
  if (!ranked) return;
  add(row_parts.data() + of_rows, across, rows, sums.row_rank);
  add(col_parts.data() + of_columns, down, M, sums.column_rank);
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
  template float largest_norm<T>(States<T>, int);                       \
  template void single_exp_reduce<T>(Chunk<T>, SingleExpSums, int); \
  template void single_exp_score_grad<T>(Chunk<T>, SingleExpTerms, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
