// reduce_rows: every reduction of a chunk along its rows, one row at a time.
#include "reductions.h"

#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "score_block.h"

namespace mk {
namespace {

MK_INLINE float clamp(float x, float limit) { return select(x < -limit, -limit, select(x > limit, limit, x)); }

constexpr float kModerate = 40.f;  // e^s is a normal float for smaller |s|, and a term e^87 times smaller is negligible

struct SharedExpSums {
  float exponentials, softplus, clipped;  // sums of e^(s - zero), log(1 + e^s), e^(clamp(s) - clamp(zero))
};

// All three sums from one exponential per score, for scores up to zero, |zero| <= kModerate. n <= kBlock.
MK_INLINE SharedExpSums reduce_shared_exp(const float* s, int64_t n, float zero, float clip) {
  float exponentials[kBlock], positive[kBlock], small[kBlock], clipped[kBlock];
  const float unit = exp_(zero), low = exp_(-clip - zero), high = exp_(clip < zero ? clip - zero : 0.f);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float e = exp_(s[j] - zero), x = e * unit;  // x = e^s
    exponentials[j] = e;
    clipped[j] = select(s[j] > kNegInf, select(e < low, low, select(e > high, high, e)), 0.f);
    positive[j] = select(s[j] > 0.f, s[j], 0.f);
    small[j] = select(x > 1.f, 1.f, x) / select(x > 1.f, x, 1.f);  // e^-|s|
  }
  return {sum(exponentials, n), sum(positive, n) + sum_log1p(small, n), sum(clipped, n) * exp_(zero - clamp(zero, clip))};
}

struct SoftplusSums {
  float softplus, sigmoid;  // sums of log(1 + e^s) and of its derivative 1 / (1 + e^-s)
};

// sigmoid is 0 unless with_sigmoid. n <= kBlock.
template <bool with_sigmoid>
MK_INLINE SoftplusSums sum_softplus(const float* s, int64_t n) {
  float positive[kBlock], small[kBlock], sigmoid[kBlock];
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float e = exp_(-absolute(s[j]));
    positive[j] = select(s[j] > 0.f, s[j], 0.f);
    small[j] = e;
    if (with_sigmoid) sigmoid[j] = select(s[j] > 0.f, 1.f, e) / (1.f + e);
  }
  return {sum(positive, n) + sum_log1p(small, n), with_sigmoid ? sum(sigmoid, n) : 0.f};
}

template <class T>
MK_INLINE void reduce_row(const T* raw, int64_t M, ScoreMap map, int64_t target, Mask mask, RowAccumulators sums, int64_t i) {
  float s[kBlock], terms[kBlock];
  float maximum = sums.total ? sums.maximum[i] : kNegInf;
  double total = sums.total ? sums.total[i] : 0, weighted = sums.weighted ? sums.weighted[i] : 0;
  double clipped = sums.clipped ? sums.clipped[i] : 0, logits = 0, softplus = 0, sigmoid = 0, above = 0;
  float poison = 0;
  float at_target = 0;
  if (target >= 0 && target < M) {
    map_block(raw + target, 1, map, map.bias ? map.bias + target : nullptr, s);
    at_target = sums.target[i] = s[0];
  }
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    const BlockRange range = map_block(raw + j0, n, map, map.bias ? map.bias + j0 : nullptr, s);
    float top = range.top;
    poison += range.poison;
    if (mask.rows || (!mask.keep_target && target >= j0 && target < j0 + n)) {
      mask_block(s, n, mask.columns_from(j0), mask.id(i), target - j0, mask.keep_target, kNegInf);
      if (sums.total) {
        top = kNegInf;
#pragma omp simd reduction(max : top)
        for (int64_t j = 0; j < n; ++j) top = s[j] > top ? s[j] : top;
      }
    }
    if (sums.logits) {  // in double: an offset common to all scores costs no digits
      double part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t j = 0; j < n; ++j) part += select(s[j] > kNegInf, s[j], 0.f);
      logits += part;
    }
    bool shared = false;
    if (sums.total) {
      if (top > maximum) {
        if (maximum > kNegInf) {
          const double shift = static_cast<double>(maximum) - top, factor = std::exp(shift);
          weighted = factor * (weighted + shift * total);
          total *= factor;
          if (sums.clipped) clipped *= std::exp(static_cast<double>(clamp(maximum, sums.clip)) - clamp(top, sums.clip));
        }
        maximum = top;
      }
      const float zero = maximum > kNegInf ? maximum : 0.f;  // no score yet: e^-inf is 0, not NaN
      float part = 0;
      if (sums.weighted) {
        float products[kBlock];
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const float x = s[j] - zero, e = exp_(x);
          terms[j] = e;
          products[j] = select(s[j] > kNegInf, e * x, 0.f);
        }
        part = sum(terms, n);
        weighted += sum(products, n);
      } else if (sums.softplus && !sums.sigmoid && std::fabs(zero) <= kModerate) {
        const SharedExpSums sum_of = reduce_shared_exp(s, n, zero, sums.clip);
        part = sum_of.exponentials;
        softplus += sum_of.softplus;
        clipped += sum_of.clipped;
        shared = true;
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) terms[j] = exp_(s[j] - zero);
        part = sum(terms, n);
      }
      total += part;
      if (sums.clipped && !shared) {
        const float start = clamp(zero, sums.clip);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) terms[j] = select(s[j] > kNegInf, exp_(clamp(s[j], sums.clip) - start), 0.f);
        clipped += sum(terms, n);
      }
    }
    if (sums.softplus && !shared) {
      const SoftplusSums sum_of = sums.sigmoid ? sum_softplus<true>(s, n) : sum_softplus<false>(s, n);
      softplus += sum_of.softplus;
      sigmoid += sum_of.sigmoid;
    }
    if (sums.rank) {
      int32_t count = 0;
#pragma omp simd reduction(+ : count)
      for (int64_t j = 0; j < n; ++j) count += s[j] > at_target ? 1 : 0;
      above += count;
    }
  }
  if (sums.total) {
    sums.maximum[i] = maximum;
    sums.total[i] = total + poison;
  }
  if (sums.weighted) sums.weighted[i] = weighted;
  if (sums.clipped) sums.clipped[i] = clipped + poison;
  if (sums.logits) sums.logits[i] += logits + poison;
  if (sums.softplus) sums.softplus[i] += softplus + poison;
  if (sums.sigmoid) sums.sigmoid[i] += sigmoid + poison;
  if (sums.rank) sums.rank[i] += static_cast<float>(above);
}

MK_KERNEL(ReduceRow, reduce_row)

}  // namespace

template <class T>
void reduce_rows(Chunk<T> chunk, ScoreMap map, RowAccumulators sums, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < chunk.rows; ++i)
    dispatch<ReduceRow>(static_cast<const T*>(chunk.row(i)), chunk.columns, map, chunk.target(i), chunk.mask, sums, i);
}

template void reduce_rows<float>(Chunk<float>, ScoreMap, RowAccumulators, int);
template void reduce_rows<bf16>(Chunk<bf16>, ScoreMap, RowAccumulators, int);

}  // namespace mk
