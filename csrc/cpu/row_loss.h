// The cross-entropy of each row: its log-sum-exp, and the gradient of the raw scores in place.
#pragma once
#include "scores.h"

namespace mk {

// Reductions of each row; logits may be null.
struct RowLossSums {
  float* lse_high = nullptr;
  float* lse_low = nullptr;
  float* target = nullptr;
  double* logits = nullptr;  // sums of the scores
};

// Coefficients of dL/ds. With the fields in this order named a, a', d, u, and r the row's log-sum-exp:
//   dL/ds_ij = (a_i + a'_i r_i) e^(s - r_i) + u_i
// for an unmasked entry, 0 for a masked one, plus d_i at the row's target unless r_i is -inf. All but a may be null.
struct RowLossTerms {
  const float* row_lse_grad = nullptr;
  const float* row_lse_slope = nullptr;
  const float* target_grad = nullptr;
  const float* row_sum_grad = nullptr;
};

// Reduce whole rows and replace raw[i, j] by dL/draw[i, j].
template <class T>
void row_loss(Chunk<T> chunk, ScoreMap map, RowLossSums sums, RowLossTerms terms, int threads);

}  // namespace mk
