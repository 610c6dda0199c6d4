// One row of each chunk at a time: both log-sum-exps, then the divergence, then the gradients. The row and its
// exponentials, which are computed once, stay in the cache between these passes. One thread sums a row, so the bits do
// not depend on the number of threads.
#include "divergence.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dispatch.h"

namespace mk {
namespace {

constexpr int64_t kBlock = 1024;  // summed in float32, the blocks in float64; a multiple of kLanes

struct Norm {  // a row's log-sum-exp in two parts, its largest score and the log of sum_j e^(s_j - top)
  float top;
  double log_sum;
};

// exps[M] receives e^(s - top).
template <class T>
MK_INLINE Norm row_norm(const T* raw, int64_t M, float scale, float* exps) {
  float top = -std::numeric_limits<float>::infinity(), poison = 0;  // 0 * s: NaN once a score is not finite
#pragma omp simd reduction(max : top) reduction(+ : poison)
  for (int64_t j = 0; j < M; ++j) {
    const float s = scale * load(raw[j]);
    top = s > top ? s : top;
    poison += s * 0.f;
  }
  double total = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t end = std::min(j0 + kBlock, M);
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = j0; j < end; ++j) {
      const float e = exp_(scale * load(raw[j]) - top);
      exps[j] = e;
      terms[j - j0] = e;
    }
    total += sum(terms, end - j0);
  }
  return {top, std::log(total) + poison};
}

// p, q and log(p / q) of one outcome. The ratio is taken before the sums are subtracted: between two log-probabilities of
// ten or twelve nats a small difference would lose its digits.
struct Outcome {
  float p, q, ratio;
};

struct Norms {
  float p_top, q_top, p_factor, q_factor, shift;  // p = p_factor e^(s - p_top)
};

template <class P, class Q>
MK_INLINE Norms row_norms(const P* p_raw, const Q* q_raw, int64_t M, float scale, float* p_exps, float* q_exps) {
  const Norm p = row_norm(p_raw, M, scale, p_exps), q = row_norm(q_raw, M, scale, q_exps);
  return {p.top, q.top, static_cast<float>(std::exp(-p.log_sum)), static_cast<float>(std::exp(-q.log_sum)),
          static_cast<float>(p.log_sum - q.log_sum)};
}

template <class P, class Q>
MK_INLINE Outcome outcome(P p_raw, Q q_raw, float p_exp, float q_exp, float scale, Norms norms) {
  const float p = scale * load(p_raw) - norms.p_top, q = scale * load(q_raw) - norms.q_top;
  return {p_exp * norms.p_factor, q_exp * norms.q_factor, (p - q) - norms.shift};
}

// One outcome's term of KL(p || q), ratio = log(p / q). It includes q - p, which sums to zero over all outcomes: no term
// is negative and each is as small as the square of its ratio, so nearly equal distributions do not cancel.
MK_INLINE float kl_term(float p, float q, float ratio) {
  const float near = p * excess_(-ratio), far = p * ratio + (q - p);
  return select(absolute(ratio) < 0.5f, near, far);
}

struct Ratios {  // log(p / m) and log(q / m)
  float p, q;
};

// From log(p / q): log m is log p or log q, whichever has the larger part in m, plus log(1 + w), -1 < w <= 1. Both parts
// are equal at level = log(rest / beta).
MK_INLINE Ratios to_mixture(float ratio, Mixture mixture, float level) {
  const bool mostly_p = ratio > level;
  const float minor = select(mostly_p, mixture.rest, mixture.beta);
  const float major = select(mostly_p, mixture.beta, mixture.rest);
  const float x = select(mostly_p, -ratio, ratio), e = exp_(x);  // at most log(major / minor)
  const float w = minor * select(absolute(x) < 0.5f, x + excess_(x), e - 1.f), u = major + minor * e;
  const float rough = log_(u);  // u is 1 + w rounded, which costs digits near 1
  const float h = select(w < -0.5f, rough, rough + (w - (u - 1.f)) / u);
  return {select(mostly_p, 0.f, x) - h, select(mostly_p, x, 0.f) - h};
}

// Template parameters say which sides get a gradient: a condition inside the loop would prevent vectorisation.
template <bool grad_p, bool grad_q, class P, class Q>
MK_INLINE void kl_gradients(P* p_raw, Q* q_raw, int64_t M, float scale, Norms norms, float factor, float kl,
                            const float* p_exps, const float* q_exps) {
#pragma omp simd
  for (int64_t j = 0; j < M; ++j) {
    const Outcome at = outcome(p_raw[j], q_raw[j], p_exps[j], q_exps[j], scale, norms);
    if (grad_p) store(p_raw + j, factor * at.p * (at.ratio - kl));
    if (grad_q) store(q_raw + j, factor * (at.q - at.p));
  }
}

template <bool grad_p, bool grad_q, class P, class Q>
MK_INLINE void js_gradients(P* p_raw, Q* q_raw, int64_t M, float scale, Norms norms, Mixture mixture, float level,
                            float p_factor, float p_kl, float q_factor, float q_kl, const float* p_exps,
                            const float* q_exps) {
#pragma omp simd
  for (int64_t j = 0; j < M; ++j) {
    const Outcome at = outcome(p_raw[j], q_raw[j], p_exps[j], q_exps[j], scale, norms);
    const Ratios ratio = to_mixture(at.ratio, mixture, level);
    if (grad_p) store(p_raw + j, p_factor * at.p * (ratio.p - p_kl));
    if (grad_q) store(q_raw + j, q_factor * at.q * (ratio.q - q_kl));
  }
}

template <class P, class Q>
MK_INLINE void kl_row(P* p_raw, Q* q_raw, int64_t M, float scale, float weight, float* value, bool grad_p,
                      bool grad_q, float* exps) {
  float *p_exps = exps, *q_exps = exps + M;
  const Norms norms = row_norms(p_raw, q_raw, M, scale, p_exps, q_exps);
  double total = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t end = std::min(j0 + kBlock, M);
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = j0; j < end; ++j) {
      const Outcome at = outcome(p_raw[j], q_raw[j], p_exps[j], q_exps[j], scale, norms);
      terms[j - j0] = kl_term(at.p, at.q, at.ratio);
    }
    total += sum(terms, end - j0);
  }
  const float kl = *value = static_cast<float>(total);
  const float factor = weight * scale;
  if (grad_p && grad_q)
    kl_gradients<true, true>(p_raw, q_raw, M, scale, norms, factor, kl, p_exps, q_exps);
  else if (grad_p)
    kl_gradients<true, false>(p_raw, q_raw, M, scale, norms, factor, kl, p_exps, q_exps);
  else if (grad_q)
    kl_gradients<false, true>(p_raw, q_raw, M, scale, norms, factor, kl, p_exps, q_exps);
}

template <class P, class Q>
MK_INLINE void js_row(P* p_raw, Q* q_raw, int64_t M, float scale, Mixture mixture, float weight, float* value,
                      bool grad_p, bool grad_q, float* exps) {
  float *p_exps = exps, *q_exps = exps + M;
  const Norms norms = row_norms(p_raw, q_raw, M, scale, p_exps, q_exps);
  const float level = std::log(mixture.rest / mixture.beta);
  double p_total = 0, q_total = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t end = std::min(j0 + kBlock, M);
    float p_terms[kBlock], q_terms[kBlock];
#pragma omp simd
    for (int64_t j = j0; j < end; ++j) {
      const Outcome at = outcome(p_raw[j], q_raw[j], p_exps[j], q_exps[j], scale, norms);
      const float m = mixture.beta * at.p + mixture.rest * at.q;
      const Ratios ratio = to_mixture(at.ratio, mixture, level);
      p_terms[j - j0] = kl_term(at.p, m, ratio.p);
      q_terms[j - j0] = kl_term(at.q, m, ratio.q);
    }
    p_total += sum(p_terms, end - j0);
    q_total += sum(q_terms, end - j0);
  }
  const float p_kl = static_cast<float>(p_total), q_kl = static_cast<float>(q_total);
  *value = mixture.beta * p_kl + mixture.rest * q_kl;
  const float p_factor = weight * scale * mixture.beta, q_factor = weight * scale * mixture.rest;
  if (grad_p && grad_q)
    js_gradients<true, true>(p_raw, q_raw, M, scale, norms, mixture, level, p_factor, p_kl, q_factor, q_kl,
                             p_exps, q_exps);
  else if (grad_p)
    js_gradients<true, false>(p_raw, q_raw, M, scale, norms, mixture, level, p_factor, p_kl, q_factor, q_kl,
                             p_exps, q_exps);
  else if (grad_q)
    js_gradients<false, true>(p_raw, q_raw, M, scale, norms, mixture, level, p_factor, p_kl, q_factor, q_kl,
                             p_exps, q_exps);
}

MK_KERNEL(Kl, kl_row)
MK_KERNEL(JensenShannon, js_row)

}  // namespace

template <class P, class Q>
void divergence(ScorePair<P, Q> pair, int threads) {
  const int64_t M = pair.columns;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> exps(2 * M);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pair.rows; ++i) {
      P* p = pair.p_raw + i * M;
      Q* q = pair.q_raw + i * M;
      if (pair.mixture.beta > 0)
        dispatch<JensenShannon>(p, q, M, pair.scale, pair.mixture, pair.weights[i], pair.values + i, pair.grad_p,
                                pair.grad_q, exps.data());
      else
        dispatch<Kl>(p, q, M, pair.scale, pair.weights[i], pair.values + i, pair.grad_p, pair.grad_q, exps.data());
    }
  }
}

template void divergence<float, float>(ScorePair<float, float>, int);
template void divergence<float, bf16>(ScorePair<float, bf16>, int);
template void divergence<bf16, float>(ScorePair<bf16, float>, int);
template void divergence<bf16, bf16>(ScorePair<bf16, bf16>, int);

}  // namespace mk
