// The CPU half of the score sweep: what happens to one chunk of the score matrix after torch.mm made it.
#pragma once
#include <cstdint>

namespace mk {

// How a raw product becomes a score: s = scale * cap * tanh((raw + bias) / cap); no cap: s = scale * (raw + bias).
struct ScoreMap {
  float scale;
  float cap;          // 0: no soft cap
  const float* bias;  // [M] or null
};

// Running row reductions, one entry a row: total is the sum of e^(s - maximum), weighted that of
// e^(s - maximum) (s - maximum). weighted and rank may be null.
struct RowSums {
  float* maximum;
  double* total;
  float* target;
  double* weighted;
  float* rank;
};

// Adds a chunk raw[rows, M] to its rows' sums. targets[i] (null: none) counts from the chunk's first column and may lie
// outside it; rank, how many scores of the row beat the target's, is only meaningful where the chunk holds whole rows.
template <class T>
void reduce_rows(const T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, RowSums sums,
                 int threads);

// The chunk's share of the column reductions: running maximum and sum of exponentials, and how many rows beat
// column_target[j] in column j, the row first_row + j excepted (rank may be null).
template <class T>
void reduce_columns(const T* raw, int64_t rows, int64_t M, ScoreMap map, float* col_max, double* col_sum,
                    const float* column_target, float* rank, int64_t first_row, int threads);

// Row and column sums in one pass and with one exponential each, for scores known to lie within +-reference, with
// 2 * reference <= 80: e^(s - reference) can then neither overflow nor vanish, whatever the row or column.
// row_total[rows] and col_total[M] are added to; target_score[i] is the score of targets[i].
template <class T>
void reduce_bounded(const T* raw, int64_t rows, int64_t M, float scale, float reference, const int64_t* targets,
                    double* row_total, float* target_score, double* col_total, int threads);

// A log-sum-exp as the unevaluated sum of two floats: at logits of 1e4 one float32 is only good to 1e-3, and
// exp(s - lse) would inherit that.
struct Lse {
  const float* high;
  const float* low;
};

// In place: raw[i, j] becomes dL/draw[i, j] for
//   dL/ds = a_i e^(s - r_i) + b_j e^(s - c_j) + d_i [j = t_i].
// b (then c too), d, d_scale may be null; d_scale[i] receives sum_j dL/ds[i, j] * s[i, j] / scale.
template <class T>
void weigh(T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, const float* a, Lse r,
           const float* b, Lse c, const float* d, double* d_scale, int threads);

// The same for scores within +-reference: dL/ds = (alpha_i + beta_j) e^(s - reference) + d_i [j = t_i].
template <class T>
void weigh_bounded(T* raw, int64_t rows, int64_t M, float scale, float reference, const int64_t* targets,
                   const float* alpha, const float* beta, const float* d, double* d_scale, int threads);

}  // namespace mk
