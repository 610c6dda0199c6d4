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

// A log-sum-exp as the unevaluated sum of two floats: at logits of 1e4 one float32 is only good to 1e-3, and
// exp(s - lse) would inherit that.
struct Lse {
  float* high;
  float* low;
};

// Rows of one chunk, raw[rows, M]. target_score, mean_score and rank may be null; targets < 0 mean "none".
template <class T>
void reduce_rows(const T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, Lse row_lse,
                 float* target_score, float* mean_score, float* rank, int threads);

// The chunk's share of the column reductions: running maximum and sum of exponentials, and how many rows beat
// column_target[j] in column j, the row first_row + j excepted (rank may be null).
template <class T>
void reduce_columns(const T* raw, int64_t rows, int64_t M, ScoreMap map, float* col_max, double* col_sum,
                    const float* column_target, float* rank, int64_t first_row, int threads);

// In place: raw[i, j] becomes dL/draw[i, j] for
//   dL/ds = a_i e^(s - r_i) + b_j e^(s - c_j) + d_i [j = t_i].
// b (then c too), d, d_scale may be null; d_scale[i] receives sum_j dL/ds[i, j] * s[i, j] / scale.
template <class T>
void weigh(T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, const float* a, Lse r,
           const float* b, Lse c, const float* d, double* d_scale, int threads);

}  // namespace mk
