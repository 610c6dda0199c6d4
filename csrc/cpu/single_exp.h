// Forward and backward kernels with one exponential per score, for |s| <= score_bound with 2 * score_bound <= 80:
// e^(s - score_bound) neither overflows nor vanishes, so rows and columns share it. Every row has a target, and the mask
// keeps the targets.
#pragma once
#include "scores.h"

namespace mk {

struct SingleExpSums {
  float scale = 1, score_bound = 0;
  double* row_total = nullptr;     // [rows], added to: sums of e^(s - score_bound)
  float* target_score = nullptr;   // [rows]
  double* column_total = nullptr;  // [columns], added to
};

// Row and column sums in one pass.
template <class T>
void single_exp_reduce(Chunk<T> chunk, SingleExpSums sums, int threads);

// dL/ds = (row_factor_i + column_factor_j) e^(s - score_bound), 0 for a masked entry, plus target_grad_i at the target.
struct SingleExpTerms {
  float scale = 1, score_bound = 0;
  const float* row_factor = nullptr;
  const float* column_factor = nullptr;
  const float* target_grad = nullptr;  // may be null
  double* scale_grad = nullptr;        // [rows], may be null: receives sum_j dL/ds[i, j] * s[i, j] / scale
};

// Replace raw[i, j] by dL/draw[i, j].
template <class T>
void single_exp_score_grad(Chunk<T> chunk, SingleExpTerms terms, int threads);

}  // namespace mk
