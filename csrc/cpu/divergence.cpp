// One row of each chunk at a time: both log-sum-exps, then the divergence, then the gradients. The row, its exponentials
// and its mixture, which are computed once, stay in the cache between these passes. One thread sums a row, so the bits
// do not depend on the number of threads.
#include "divergence.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dispatch.h"

namespace mk {
namespace {

constexpr float kTiny = 1.17549435e-38f;  // the smallest normal float
constexpr int64_t kBlock = 1024;  // summed in float32, the blocks in float64; a multiple of kLanes

struct Scratch {  // of one row, [M] each; log_m with a mixture alone
  float *p_exps, *q_exps, *log_m;
};

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
MK_INLINE Norms row_norms(const P* p_raw, const Q* q_raw, int64_t M, float scale, Scratch row) {
  const Norm p = row_norm(p_raw, M, scale, row.p_exps), q = row_norm(q_raw, M, scale, row.q_exps);
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

// The mixture of one row, and what its outcomes share.
struct RowMixture {
  float beta, rest, level;  // m = beta p + rest q; both parts are equal at log(p / q) = level = log(rest / beta)
  float q_over_p;           // q / p = q_over_p q_exp / p_exp
};

// log(m / major) = log(1 + w), 1 + w = major + minor e, -1 < w <= 1. The exponentials give e, the one over the other,
// unless both are 0, and then p and q are 0 as well.
MK_INLINE float log_mixture(float ratio, float p_exp, float q_exp, RowMixture mixture) {
  const bool mostly_p = ratio > mixture.level;
  const float minor = select(mostly_p, mixture.rest, mixture.beta);
  const float major = select(mostly_p, mixture.beta, mixture.rest);
  const float q_scaled = q_exp * mixture.q_over_p;
  const float top = select(mostly_p, q_scaled, p_exp), bottom = select(mostly_p, p_exp, q_scaled);
  const float x = select(mostly_p, -ratio, ratio), e = top / (bottom + kTiny);
  const float w = minor * select(absolute(x) < 0.5f, x + excess_(x), e - 1.f), u = major + minor * e;
  const float rough = log_(u);  // u is 1 + w rounded, which costs digits near 1
  return select(w < -0.5f, rough, rough + (w - (u - 1.f)) / u);
}

struct Ratios {  // log(p / m) and log(q / m)
  float p, q;
};

MK_INLINE Ratios to_mixture(float ratio, float level, float log_m) {
  const float p = select(ratio > level, 0.f, ratio);  // log(p / major)
  return {p - log_m, (p - ratio) - log_m};
}

// Template parameters say which sides get a gradient: a condition inside the loop would prevent vectorisation.
template <bool grad_p, bool grad_q, class P, class Q>
MK_INLINE void kl_gradients(P* p_raw, Q* q_raw, int64_t M, float scale, Norms norms, float factor, float kl,
                            Scratch row) {
#pragma omp simd
  for (int64_t j = 0; j < M; ++j) {
    const Outcome at = outcome(p_raw[j], q_raw[j], row.p_exps[j], row.q_exps[j], scale, norms);
    if (grad_p) store(p_raw + j, factor * at.p * (at.ratio - kl));
    if (grad_q) store(q_raw + j, factor * (at.q - at.p));
  }
}

template <bool grad_p, bool grad_q, class P, class Q>
MK_INLINE void js_gradients(P* p_raw, Q* q_raw, int64_t M, float scale, Norms norms, RowMixture mixture,
                            float p_factor, float p_kl, float q_factor, float q_kl, Scratch row) {
#pragma omp simd
  for (int64_t j = 0; j < M; ++j) {
    const Outcome at = outcome(p_raw[j], q_raw[j], row.p_exps[j], row.q_exps[j], scale, norms);
    const Ratios ratio = to_mixture(at.ratio, mixture.level, row.log_m[j]);
    if (grad_p) store(p_raw + j, p_factor * at.p * (ratio.p - p_kl));
    if (grad_q) store(q_raw + j, q_factor * at.q * (ratio.q - q_kl));
  }
}

template <class P, class Q>
MK_INLINE void kl_row(P* p_raw, Q* q_raw, int64_t M, float scale, float weight, float* value, bool grad_p,
                      bool grad_q, Scratch row) {
  const Norms norms = row_norms(p_raw, q_raw, M, scale, row);
  double total = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t end = std::min(j0 + kBlock, M);
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = j0; j < end; ++j) {
      const Outcome at = outcome(p_raw[j], q_raw[j], row.p_exps[j], row.q_exps[j], scale, norms);
      terms[j - j0] = kl_term(at.p, at.q, at.ratio);
    }
    total += sum(terms, end - j0);
  }
  const float kl = *value = static_cast<float>(total);
  const float factor = weight * scale;
  if (grad_p && grad_q)
    kl_gradients<true, true>(p_raw, q_raw, M, scale, norms, factor, kl, row);
  else if (grad_p)
    kl_gradients<true, false>(p_raw, q_raw, M, scale, norms, factor, kl, row);
  else if (grad_q)
    kl_gradients<false, true>(p_raw, q_raw, M, scale, norms, factor, kl, row);
}

template <class P, class Q>
MK_INLINE void js_row(P* p_raw, Q* q_raw, int64_t M, float scale, Mixture mix, float weight, float* value,
                      bool grad_p, bool grad_q, Scratch row) {
  const Norms norms = row_norms(p_raw, q_raw, M, scale, row);
  const RowMixture mixture = {mix.beta, mix.rest, std::log(mix.rest / mix.beta),
                              norms.q_factor / norms.p_factor};
  double p_total = 0, q_total = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t end = std::min(j0 + kBlock, M);
    float p_terms[kBlock], q_terms[kBlock];
#pragma omp simd
    for (int64_t j = j0; j < end; ++j) {
      const Outcome at = outcome(p_raw[j], q_raw[j], row.p_exps[j], row.q_exps[j], scale, norms);
      const float m = mixture.beta * at.p + mixture.rest * at.q;
      const float log_m = log_mixture(at.ratio, row.p_exps[j], row.q_exps[j], mixture);
      const Ratios ratio = to_mixture(at.ratio, mixture.level, log_m);
      row.log_m[j] = log_m;
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
    js_gradients<true, true>(p_raw, q_raw, M, scale, norms, mixture, p_factor, p_kl, q_factor, q_kl, row);
  else if (grad_p)
    js_gradients<true, false>(p_raw, q_raw, M, scale, norms, mixture, p_factor, p_kl, q_factor, q_kl, row);
  else if (grad_q)
    js_gradients<false, true>(p_raw, q_raw, M, scale, norms, mixture, p_factor, p_kl, q_factor, q_kl, row);
}

MK_KERNEL(Kl, kl_row)
MK_KERNEL(JensenShannon, js_row)

}  // namespace

template <class P, class Q>
void divergence(ScorePair<P, Q> pair, int threads) {
  const int64_t M = pair.columns;
#pragma omp parallel num_threads(threads)
  {
    const bool mixture = pair.mixture.beta > 0;
    std::vector<float> scratch((mixture ? 3 : 2) * M);
    const Scratch row = {scratch.data(), scratch.data() + M, mixture ? scratch.data() + 2 * M : nullptr};
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pair.rows; ++i) {
      P* p = pair.p_raw + i * M;
      Q* q = pair.q_raw + i * M;
      if (mixture)
        dispatch<JensenShannon>(p, q, M, pair.scale, pair.mixture, pair.weights[i], pair.values + i, pair.grad_p,
                                pair.grad_q, row);
      else
        dispatch<Kl>(p, q, M, pair.scale, pair.weights[i], pair.values + i, pair.grad_p, pair.grad_q, row);
    }
  }
}

template void divergence<float, float>(ScorePair<float, float>, int);
template void divergence<float, bf16>(ScorePair<float, bf16>, int);
template void divergence<bf16, float>(ScorePair<bf16, float>, int);
template void divergence<bf16, bf16>(ScorePair<bf16, bf16>, int);

}  // namespace mk
