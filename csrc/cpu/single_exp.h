// Forward and backward kernels with one exponential per score, for |s| <= 40: e^s, its sums and their reciprocals are
// normal float32 numbers, so rows and columns share it and no maximum is subtracted. A distant maximum would cost digits:
// s - 40 is rounded to 4e-6. Every row has a target, and the mask keeps the targets.
#pragma once
#include "pool.h"
#include "scores.h"

namespace mk {

struct SingleExpSums {
  float scale = 1;
  double* row_total = nullptr;     // [rows], added to: sums of e^s
  float* target_score = nullptr;   // [rows]
  double* column_total = nullptr;  // [columns], added to
  // All or none; the ranks are those of RowAccumulators and ColumnAccumulators (reductions.h).
  float* row_rank = nullptr;             // [rows], added to
  float* column_rank = nullptr;          // [columns], added to
  const float* column_target = nullptr;  // [columns]
  // Both or none, and not with ranks: sums of s, added to.
  double* row_logits = nullptr;     // [rows]
  double* column_logits = nullptr;  // [columns]
};

// The largest Euclidean norm of a row, infinite if an entry is not finite: what bounds |s|.
template <class T>
float largest_norm(States<T> operand, int threads);

// Row and column sums in one pass.
template <class T>
void single_exp_reduce(Chunk<T> chunk, SingleExpSums sums, int threads);

// dL/ds = (row_factor_i + column_factor_j) e^s + row_sum_grad_i + column_sum_grad_j, 0 for a masked entry, plus
// target_grad_i at the target.
struct SingleExpTerms {
  float scale = 1;
  const float* row_factor = nullptr;
  const float* column_factor = nullptr;
  const float* row_sum_grad = nullptr;     // [rows], may be null
  const float* column_sum_grad = nullptr;  // [columns], null if row_sum_grad is
  const float* target_grad = nullptr;      // may be null
  double* scale_grad = nullptr;            // [rows], may be null: receives sum_j dL/ds[i, j] * s[i, j] / scale
};

// Replace raw[i, j] by dL/draw[i, j].
template <class T>
void single_exp_score_grad(Chunk<T> chunk, SingleExpTerms terms, int threads);

}  // namespace mk
