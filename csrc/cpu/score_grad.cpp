// score_grad: the gradient of a chunk of raw scores, in place, one row at a time.
#include "score_grad.h"

#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "score_block.h"

namespace mk {
namespace {

constexpr float kLowest = -1e4f;  // a finite stand-in for the logarithm of 0; e^x is 0 long before

// scale ds/dscale of the score s of the raw product x, without the part of a bias that all columns share: it can be a
// thousand times the rest, which would drown in its rounding.
MK_INLINE float scaled_slope(ScoreMap map, float x, float s) { return select(map.is_uniform, map.scale * x, s); }

enum class Bias { none, uniform, of_columns };

// The softplus term alone, in one loop: sigmoid and pairwise losses have no other. Returns the sum of dL/ds scaled_slope
// if sums.
template <Bias kind, bool masked, class T>
MK_INLINE float softplus_grad_block(T* row, int64_t n, ScoreMap map, const float* bias, const int32_t* columns,
                                    int32_t id, float softplus_grad, bool sums) {
  constexpr bool biased = kind != Bias::none;
  float products[kBlock];
  const float uniform = biased ? bias[0] : 0.f;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float x = load(row[j]), b = kind == Bias::of_columns ? bias[j] : uniform;
    float s = biased ? map.scale * (x + b) + x * 0.f : map.scale * x;
    float g = softplus_grad * sigmoid_(s);
    if (masked) g = select(columns[j] == id, 0.f, g);
    if (biased) {
      g = select(s == kNegInf, 0.f, g);
      s = select(s == kNegInf, 0.f, s);
    }
    products[j] = g * (kind == Bias::uniform ? map.scale * x : s);
    store(row + j, g * map.scale);
  }
  return sums ? sum(products, n) : 0.f;
}

template <Bias kind, class T>
MK_INLINE float softplus_grad_any(T* row, int64_t n, ScoreMap map, const float* bias, const int32_t* columns, int32_t id,
                                  float softplus_grad, bool sums) {
  return columns ? softplus_grad_block<kind, true>(row, n, map, bias, columns, id, softplus_grad, sums)
                 : softplus_grad_block<kind, false>(row, n, map, bias, columns, id, softplus_grad, sums);
}

template <class T>
MK_INLINE void softplus_grad_row(T* raw, int64_t i, int64_t M, ScoreMap map, int64_t target, Mask mask,
                                 ScoreGradTerms terms, double* scale_grad) {
  T* row = raw + i * M;
  const float e = terms.softplus_grad[i];
  const int32_t id = mask.id(i);
  float slope = 0, own = 0, in_sum = 0;  // the target's slope, its gradient, and what the loops take it for
  const bool has_target = target >= 0 && target < M;
  if (has_target) {
    float at_target;
    map_block(row + target, 1, map, map.bias ? map.bias + target : nullptr, &at_target);
    const bool is_excluded = map.bias && at_target == kNegInf;
    const float of_softplus = is_excluded ? 0.f : e * sigmoid_(at_target);
    in_sum = mask.rows && mask.columns[target] == id ? 0.f : of_softplus;
    own = (mask.keep_target ? of_softplus : 0.f) + (terms.target_grad ? terms.target_grad[i] : 0.f);
    slope = is_excluded ? 0.f : scaled_slope(map, load(row[target]), at_target);
  }
  double against_slope = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    const float* bias = map.bias ? map.bias + j0 : nullptr;
    const int32_t* columns = mask.columns_from(j0);
    T* block = row + j0;
    const bool sums = scale_grad != nullptr;
    if (map.is_uniform)
      against_slope += softplus_grad_any<Bias::uniform>(block, n, map, bias, columns, id, e, sums);
    else if (bias)
      against_slope += softplus_grad_any<Bias::of_columns>(block, n, map, bias, columns, id, e, sums);
    else
      against_slope += softplus_grad_any<Bias::none>(block, n, map, bias, columns, id, e, sums);
  }
  if (has_target) store(row + target, own * map.scale);
  if (scale_grad) scale_grad[i] = (against_slope + (static_cast<double>(own) - in_sum) * slope) / map.scale;
}

template <class T>
MK_INLINE void score_grad_row(T* raw, int64_t i, int64_t M, ScoreMap map, int64_t target, Mask mask,
                              ScoreGradTerms terms, double* scale_grad) {
  float s[kBlock], g[kBlock];
  T* row = raw + i * M;
  double against_slope = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    map_block(row + j0, n, map, map.bias ? map.bias + j0 : nullptr, s);
    const float ui = terms.row_sum_grad ? terms.row_sum_grad[i] : 0.f;
    if (terms.row_lse_grad) {
      const float ai = terms.row_lse_grad[i], ri = terms.row_lse.high[i], ri_low = terms.row_lse.low[i];
      if (terms.neg_entropy_grad) {
        const float hi = terms.neg_entropy_grad[i];
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const float x = (s[j] - ri) - ri_low;
          g[j] = (ai + hi * select(x < kLowest, kLowest, x)) * exp_(x) + ui;
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) g[j] = ai * exp_((s[j] - ri) - ri_low) + ui;
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) g[j] = ui;
    }
    if (terms.column_lse_grad) {
      const float *b = terms.column_lse_grad + j0, *c = terms.column_lse.high + j0, *c_low = terms.column_lse.low + j0;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) g[j] += b[j] * exp_((s[j] - c[j]) - c_low[j]);
    }
    if (terms.softplus_grad) {
      const float ei = terms.softplus_grad[i];
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) g[j] += ei * sigmoid_(s[j]);
    }
    if (terms.column_sum_grad) {
      const float* v = terms.column_sum_grad + j0;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) g[j] += v[j];
    }
    if (mask.any()) mask_block(g, n, mask.columns_from(j0), mask.id(i), target - j0, mask.keep_target, 0.f);
    if (map.bias) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        g[j] = select(s[j] == kNegInf, 0.f, g[j]);
        s[j] = select(s[j] == kNegInf, -map.scale * map.cap, s[j]);  // where tanh has no slope
      }
    }
    if (terms.target_grad && target >= j0 && target < j0 + n) g[target - j0] += terms.target_grad[i];
    if (scale_grad) {
      float products[kBlock];
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) products[j] = g[j] * scaled_slope(map, load(row[j0 + j]), s[j]);
      against_slope += sum(products, n);
    }
    store_raw_grad(row + j0, g, s, n, map);
  }
  if (scale_grad) scale_grad[i] = against_slope / map.scale;
}

MK_KERNEL(ScoreGradRow, score_grad_row)
MK_KERNEL(SoftplusGradRow, softplus_grad_row)

}  // namespace

template <class T>
void score_grad(Chunk<T> chunk, ScoreMap map, ScoreGradTerms terms, double* scale_grad, int threads) {
  const bool softplus_alone = terms.softplus_grad && !terms.row_lse_grad && !terms.column_lse_grad &&
                              !terms.row_sum_grad && !terms.column_sum_grad && map.cap == 0;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < chunk.rows; ++i) {
    if (softplus_alone)
      dispatch<SoftplusGradRow>(chunk.raw, i, chunk.columns, map, chunk.target(i), chunk.mask, terms, scale_grad);
    else
      dispatch<ScoreGradRow>(chunk.raw, i, chunk.columns, map, chunk.target(i), chunk.mask, terms, scale_grad);
  }
}

template void score_grad<float>(Chunk<float>, ScoreMap, ScoreGradTerms, double*, int);
template void score_grad<bf16>(Chunk<bf16>, ScoreMap, ScoreGradTerms, double*, int);

}  // namespace mk
