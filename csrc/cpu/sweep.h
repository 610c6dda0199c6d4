// The CPU half of the score sweep: what happens to one chunk of the score matrix after torch.mm made it.
#pragma once
#include <cstdint>

namespace mk {

// How a raw product becomes a score: s = scale * cap * tanh((raw + bias) / cap); no cap: s = scale * (raw + bias).
struct ScoreMap {
  float scale;
  float cap;          // 0: no soft cap
  const float* bias;  // [M] or null; -inf leaves its column out
};

// Entries that take no part: those of row i and column j with rows[i] == columns[j], the row's target excepted where
// keep_target, itself left out where not. rows null: nothing is left out.
struct Mask {
  const int32_t* rows;
  const int32_t* columns;
  bool keep_target;
};

// Running row reductions, one entry a row, all but target null where not wanted. total is the sum of e^(s - maximum),
// weighted that of e^(s - maximum) (s - maximum), clipped that of e^(clamp(s) - clamp(maximum)), clamped to +-clip.
struct RowSums {
  float* maximum;
  double* total;
  float* target;
  double* weighted;
  float* rank;
  double* logits;
  double* softplus;
  double* clipped;
  float clip;
};

// Adds a chunk raw[rows, M] to its rows' sums. targets[i] (null: none) counts from the chunk's first column and may lie
// outside it; rank, how many scores of the row beat the target's, is only meaningful where the chunk holds whole rows.
// weighted and clipped need total.
template <class T>
void reduce_rows(const T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, Mask mask, RowSums sums,
                 int threads);

// Running column reductions, one entry a column. rank counts the rows that beat target[j] in column j, the row whose
// target it is excepted; logits is the sum of the scores. target, rank and logits may be null.
struct ColumnSums {
  float* maximum;
  double* total;
  const float* target;
  float* rank;
  double* logits;
};

// Adds a chunk to the column sums; targets may be null.
template <class T>
void reduce_columns(const T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, Mask mask,
                    ColumnSums sums, int threads);

// Row and column sums in one pass and with one exponential each, for scores known to lie within +-reference, with
// 2 * reference <= 80: e^(s - reference) can then neither overflow nor vanish, whatever the row or column.
// row_total[rows] and col_total[M] are added to; target_score[i] is the score of targets[i]. The mask keeps targets.
template <class T>
void reduce_bounded(const T* raw, int64_t rows, int64_t M, float scale, float reference, const int64_t* targets,
                    Mask mask, double* row_total, float* target_score, double* col_total, int threads);

// A log-sum-exp as the unevaluated sum of two floats: at logits of 1e4 one float32 is only good to 1e-3, and
// exp(s - lse) would inherit that.
struct Lse {
  const float* high;
  const float* low;
};

// Weights of dL/ds_ij = (a_i + h_i (s - r_i)) e^(s - r_i) + b_j e^(s - c_j) + e_i sigmoid(s) + u_i + v_j, 0 where left
// out, + d_i at the target. Each may be null; r goes with a, and so does h, c with b.
struct Upstream {
  const float* a;
  Lse r;
  const float* b;
  Lse c;
  const float* d;
  const float* e;
  const float* u;
  const float* v;
  const float* h;
};

// In place: raw[i, j] becomes dL/draw[i, j]. d_scale[i] (null: not wanted) receives sum_j dL/ds[i, j] * s[i, j] / scale.
template <class T>
void weigh(T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, Mask mask, Upstream up,
           double* d_scale, int threads);

// The same for scores within +-reference: dL/ds = (alpha_i + beta_j) e^(s - reference), 0 where left out, + d_i at the
// target, of which every row has one. The mask keeps targets.
template <class T>
void weigh_bounded(T* raw, int64_t rows, int64_t M, float scale, float reference, const int64_t* targets, Mask mask,
                   const float* alpha, const float* beta, const float* d, double* d_scale, int threads);

// sums[M] += the column sums of a chunk.
template <class T>
void add_columns(const T* raw, int64_t rows, int64_t M, float* sums, int threads);

}  // namespace mk
