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

// The sums of a tile. What is null is not computed.
struct TileSums {
  float *row_total, *column_total, *row_rank, *column_rank, *row_logits, *column_logits;
};

template <bool masked, bool ranked, bool summed, class T>
MK_INLINE void reduce_tile(Tile<T> tile, TileSums sums) {
  const int64_t n = tile.columns;
  const int32_t* ids = tile.mask.columns;
  const float* column_target = tile.column_target;
  float run[kBlock] = {}, above[kBlock] = {}, logits[kBlock] = {};
  std::fill(sums.column_total, sums.column_total + n, 0.f);
  for (int64_t i = 0; i < tile.rows; ++i) {
    if (i % kRun == 0) end_run(run, n, sums.column_total);
    const T* row = tile.raw + i * tile.stride;
    if (i + 1 < tile.rows) prefetch(row + tile.stride, n);
    const int32_t id = masked ? tile.mask.rows[i] : 0;
    const float at_target = ranked ? tile.target_score[i] : 0.f;
    float terms[kBlock], scores[kBlock];
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t j = 0; j < n; ++j) {
      const float s = tile.scale * load(row[j]), weight = exp_(s);
      const float e = masked ? select(ids[j] == id, 0.f, weight) : weight;
      terms[j] = e;
      run[j] += e;
      if (summed) {
        scores[j] = masked ? select(ids[j] == id, 0.f, s) : s;
        logits[j] += scores[j];
      }
      if (ranked) {
        const float counted = masked ? select(ids[j] == id, kNegInf, s) : s;
        above[j] += select(counted > column_target[j], 1.f, 0.f);
        count += counted > at_target ? 1 : 0;
      }
    }
    float total = sum(terms, n), sum_of_scores = summed ? sum(scores, n) : 0.f;
    const int64_t own = tile.targets[i] - tile.j0;
    if (own >= 0 && own < n) {
      if (masked && ids[own] == id) {  // the target stays unmasked
        const float s = tile.scale * load(row[own]), e = exp_(s);
        total += e;
        run[own] += e;
        sum_of_scores += s;
        logits[own] += s;
      } else if (ranked && at_target > column_target[own]) {  // a row does not count in the rank of its target column
        above[own] -= 1.f;
      }
    }
    sums.row_total[i] = total;
    if (ranked) sums.row_rank[i] = static_cast<float>(count);
    if (summed) sums.row_logits[i] = sum_of_scores;
  }
  end_run(run, n, sums.column_total);
  if (ranked) std::copy(above, above + n, sums.column_rank);
  if (summed) std::copy(logits, logits + n, sums.column_logits);
}

template <bool masked, class T>
MK_INLINE void reduce_what_is_asked(Tile<T> tile, TileSums sums) {
  if (sums.row_rank)
    reduce_tile<masked, true, false>(tile, sums);
  else if (sums.row_logits)
    reduce_tile<masked, false, true>(tile, sums);
  else
    reduce_tile<masked, false, false>(tile, sums);
}

template <class T>
MK_INLINE void reduce_any_tile(Tile<T> tile, TileSums sums) {
  tile.mask.rows ? reduce_what_is_asked<true>(tile, sums) : reduce_what_is_asked<false>(tile, sums);
}

// What the gradient of a row's scores is made of; the pointers are those of its columns.
struct RowTerms {
  float scale, row_factor, row_sum_grad, target_grad;
  const float *column_factor, *column_sum_grad;
  const int32_t* columns;  // ids; null: no mask
  int32_t id;
};

template <bool masked, bool summed, class T>
MK_INLINE float single_exp_grad_block(T* row, int64_t n, RowTerms terms, bool sums_score_grad) {
  const float scale = terms.scale, row_factor = terms.row_factor, of_row = terms.row_sum_grad;
  const float *column_factor = terms.column_factor, *of_column = terms.column_sum_grad;
  const int32_t* columns = terms.columns;
  const int32_t id = terms.id;
  float products[kBlock];
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float x = load(row[j]), weight = (row_factor + column_factor[j]) * exp_(scale * x);
    const float all = summed ? weight + (of_row + of_column[j]) : weight;
    const float g = masked ? select(columns[j] == id, 0.f, all) : all;
    if (sums_score_grad) products[j] = g * x;
    store(row + j, g * scale);
  }
  return sums_score_grad ? sum(products, n) : 0.f;
}

template <bool masked, bool summed, class T>
MK_INLINE double single_exp_grad_blocks(T* row, int64_t M, RowTerms terms, bool sums_score_grad) {
  double total = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    RowTerms part = terms;
    part.column_factor += j0;
    if (summed) part.column_sum_grad += j0;
    if (masked) part.columns += j0;
    const int64_t n = std::min(kBlock, M - j0);
    total += sums_score_grad ? single_exp_grad_block<masked, summed>(row + j0, n, part, true)
                             : single_exp_grad_block<masked, summed>(row + j0, n, part, false);
  }
  return total;
}

template <class T>
MK_INLINE void single_exp_grad_row(T* row, int64_t M, int64_t target, RowTerms terms, double* scale_grad) {
  const bool summed = terms.column_sum_grad, masked = terms.columns, sums_score_grad = scale_grad;
  const float at_target = load(row[target]);
  const float constant = summed ? terms.row_sum_grad + terms.column_sum_grad[target] : 0.f;
  const float own = (terms.row_factor + terms.column_factor[target]) * exp_(terms.scale * at_target) + constant;
  double sum_of_row;
  if (masked)
    sum_of_row = summed ? single_exp_grad_blocks<true, true>(row, M, terms, sums_score_grad)
                        : single_exp_grad_blocks<true, false>(row, M, terms, sums_score_grad);
  else
    sum_of_row = summed ? single_exp_grad_blocks<false, true>(row, M, terms, sums_score_grad)
                        : single_exp_grad_blocks<false, false>(row, M, terms, sums_score_grad);
  store(row + target, (own + terms.target_grad) * terms.scale);
  const float masked_own = masked && terms.columns[target] == terms.id ? own : 0.f;
  if (scale_grad) *scale_grad = sum_of_row + (static_cast<double>(terms.target_grad) + masked_own) * at_target;
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
  const bool ranked = sums.row_rank != nullptr, summed = !ranked && sums.row_logits != nullptr;
  const int64_t of_rows = across * rows, of_columns = down * M, kinds = ranked || summed ? 2 : 1;
  // one entry per tile: no sum crosses threads
  std::vector<float> row_parts(of_rows * kinds), col_parts(of_columns * kinds);
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
      TileSums parts{row_part, col_part};
      (ranked ? parts.row_rank : parts.row_logits) = kinds == 2 ? row_part + of_rows : nullptr;
      (ranked ? parts.column_rank : parts.column_logits) = kinds == 2 ? col_part + of_columns : nullptr;
      dispatch<ReduceTile>(tile, parts);
    }
  const auto add = [](const float* parts, int64_t count, int64_t n, auto* total) {
    for (int64_t part = 0; part < count; ++part)
      for (int64_t i = 0; i < n; ++i) total[i] += parts[part * n + i];
  };
  add(row_parts.data(), across, rows, sums.row_total);
  add(col_parts.data(), down, M, sums.column_total);
  const float *more_of_rows = row_parts.data() + of_rows, *more_of_columns = col_parts.data() + of_columns;
  if (ranked) {
    add(more_of_rows, across, rows, sums.row_rank);
    add(more_of_columns, down, M, sums.column_rank);
  } else if (summed) {
    add(more_of_rows, across, rows, sums.row_logits);
    add(more_of_columns, down, M, sums.column_logits);
  }
}

template <class T>
void single_exp_score_grad(Chunk<T> chunk, SingleExpTerms terms, int threads) {
  const Mask mask = chunk.mask;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < chunk.rows; ++i) {
    const RowTerms row{terms.scale,
                       terms.row_factor[i],
                       terms.row_sum_grad ? terms.row_sum_grad[i] : 0.f,
                       terms.target_grad ? terms.target_grad[i] : 0.f,
                       terms.column_factor,
                       terms.column_sum_grad,
                       mask.rows ? mask.columns : nullptr,
                       mask.rows ? mask.rows[i] : 0};
    dispatch<SingleExpGradRow>(chunk.row(i), chunk.columns, chunk.targets[i], row,
                               terms.scale_grad ? terms.scale_grad + i : nullptr);
  }
}

#define MK_INSTANTIATE(T)                                                \
  template float largest_norm<T>(States<T>, int);                       \
  template void single_exp_reduce<T>(Chunk<T>, SingleExpSums, int); \
  template void single_exp_score_grad<T>(Chunk<T>, SingleExpTerms, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
