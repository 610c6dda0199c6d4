// The gradient of a chunk of raw scores.
#pragma once
#include "scores.h"

namespace mk {

// Coefficients of dL/ds. With the fields in this order named a, r, b, c, d, e, u, v, h:
//   dL/ds_ij = (a_i + h_i (s - r_i)) e^(s - r_i) + b_j e^(s - c_j) + e_i sigmoid(s) + u_i + v_j
// for an unmasked entry, 0 for a masked one, plus d_i at the row's target. Each may be null, which is zero; h needs a, a
// needs r, and b needs c.
struct ScoreGradTerms {
  const float* row_lse_grad = nullptr;
  Lse row_lse;
  const float* column_lse_grad = nullptr;
  Lse column_lse;
  const float* target_grad = nullptr;
  const float* softplus_grad = nullptr;
  const float* row_sum_grad = nullptr;
  const float* column_sum_grad = nullptr;
  const float* neg_entropy_grad = nullptr;
};

// Replace raw[i, j] by dL/draw[i, j]. scale_grad[i] (may be null) receives sum_j dL/ds[i, j] * s[i, j] / scale.
template <class T>
void score_grad(Chunk<T> chunk, ScoreMap map, ScoreGradTerms terms, double* scale_grad, int threads);

}  // namespace mk
