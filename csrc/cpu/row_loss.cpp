// row_loss: one row at a time, so its scores and its exponentials are still in the cache when the gradient needs them,
// and every exponential is computed once.
#include "row_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "score_block.h"

namespace mk {
namespace {

struct RowTerms {
  float row_lse_grad, row_lse_slope, target_grad, row_sum_grad;
};

struct RowSums {
  float lse_high, lse_low, target;
  double logits;
};

MK_INLINE int64_t blocks_of(int64_t M) { return (M + kBlock - 1) / kBlock; }

// exps[M] receives e^(s - zero), with one zero per block in zeros: the largest score so far.
template <class T>
MK_INLINE RowSums reduce_whole_row(const T* raw, int64_t M, ScoreMap map, int32_t id, Mask mask, int64_t target,
                                   bool sums_logits, float* exps, float* zeros) {
  float s[kBlock], terms[kBlock], maximum = kNegInf, poison = 0;
  double total = 0, logits = 0;
  RowSums sums = {};
  if (target >= 0 && target < M) {
    map_block(raw + target, 1, map, map.bias ? map.bias + target : nullptr, s);
    sums.target = s[0];
  }
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    const BlockRange range = map_block(raw + j0, n, map, map.bias ? map.bias + j0 : nullptr, s);
    poison += range.poison;
    float top = range.top;
    if (mask.any()) {
      mask_block(s, n, mask.columns_from(j0), id, target - j0, mask.keep_target, kNegInf);
      top = kNegInf;
#pragma omp simd reduction(max : top)
      for (int64_t j = 0; j < n; ++j) top = s[j] > top ? s[j] : top;
    }
    if (sums_logits) {  // in double: an offset common to all scores costs no digits
      double part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t j = 0; j < n; ++j) part += select(s[j] > kNegInf, s[j], 0.f);
      logits += part;
    }
    if (top > maximum) {
      if (maximum > kNegInf) total *= std::exp(static_cast<double>(maximum) - top);
      maximum = top;
    }
    const float zero = zeros[j0 / kBlock] = maximum > kNegInf ? maximum : 0.f;  // no score yet: e^-inf is 0, not NaN
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float e = exp_(s[j] - zero);
      exps[j0 + j] = e;
      terms[j] = e;
    }
    total += sum(terms, n);
  }
  const double lse = maximum + std::log(total + poison);
  sums.lse_high = static_cast<float>(lse);
  sums.lse_low = sums.lse_high == kNegInf ? 0.f : static_cast<float>(lse - sums.lse_high);
  sums.logits = logits + poison;
  return sums;
}

template <class T>
MK_INLINE void grad_of_row(T* raw, int64_t M, ScoreMap map, int32_t id, Mask mask, int64_t target, RowSums sums,
                           RowTerms terms, float* exps, const float* zeros) {
  const double lse = static_cast<double>(sums.lse_high) + sums.lse_low;
  const float a = terms.row_lse_grad + terms.row_lse_slope * sums.lse_high, u = terms.row_sum_grad;
  const float d = sums.lse_high == kNegInf ? 0.f : terms.target_grad;
  const bool plain = !mask.any() && !map.bias && map.cap == 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    float* g = exps + j0;
    const float factor = a * static_cast<float>(std::exp(zeros[j0 / kBlock] - lse));
    const bool has_target = target >= j0 && target < j0 + n;
    if (plain) {
      const float at_target = has_target ? (factor * g[target - j0] + u + d) * map.scale : 0.f;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) store(raw + j0 + j, (factor * g[j] + u) * map.scale);
      if (has_target) store(raw + target, at_target);
      continue;
    }
    float s[kBlock];
    map_block(raw + j0, n, map, map.bias ? map.bias + j0 : nullptr, s);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) g[j] = factor * g[j] + u;
    if (mask.any()) mask_block(g, n, mask.columns_from(j0), id, target - j0, mask.keep_target, 0.f);
    if (map.bias) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        g[j] = select(s[j] == kNegInf, 0.f, g[j]);
        s[j] = select(s[j] == kNegInf, -map.scale * map.cap, s[j]);  // where tanh has no slope
      }
    }
    if (has_target) g[target - j0] += d;
    store_raw_grad(raw + j0, g, s, n, map);
  }
}

template <class T>
MK_INLINE RowSums row_loss_row(T* raw, int64_t M, ScoreMap map, int32_t id, Mask mask, int64_t target,
                               bool sums_logits, RowTerms terms, float* exps) {
  float* zeros = exps + M;
  const RowSums sums =
      reduce_whole_row(static_cast<const T*>(raw), M, map, id, mask, target, sums_logits, exps, zeros);
  grad_of_row(raw, M, map, id, mask, target, sums, terms, exps, zeros);
  return sums;
}

MK_KERNEL(RowLossRow, row_loss_row)

}  // namespace

template <class T>
void row_loss(Chunk<T> chunk, ScoreMap map, RowLossSums sums, RowLossTerms terms, int threads) {
  const int64_t M = chunk.columns;
  const auto entry = [](const float* vector, int64_t i) { return vector ? vector[i] : 0.f; };
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> exps(M + blocks_of(M));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < chunk.rows; ++i) {
      const RowTerms row_terms = {terms.row_lse_grad[i], entry(terms.row_lse_slope, i), entry(terms.target_grad, i),
                                  entry(terms.row_sum_grad, i)};
      const RowSums row = dispatch<RowLossRow>(chunk.row(i), M, map, chunk.mask.id(i), chunk.mask,
                                               chunk.target(i), sums.logits != nullptr, row_terms,
                                               exps.data());
      sums.lse_high[i] = row.lse_high;
      sums.lse_low[i] = row.lse_low;
      if (chunk.target(i) >= 0) sums.target[i] = row.target;
      if (sums.logits) sums.logits[i] += row.logits;
    }
  }
}

template void row_loss<float>(Chunk<float>, ScoreMap, RowLossSums, RowLossTerms, int);
template void row_loss<bf16>(Chunk<bf16>, ScoreMap, RowLossSums, RowLossTerms, int);

}  // namespace mk
