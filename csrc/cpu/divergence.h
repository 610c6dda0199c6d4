// Divergences between the softmaxes of two score chunks, row by row, and their gradients in the same call.
#pragma once
#include <cstdint>

namespace mk {

// beta of p and 1 - beta of q make the mixture of the Jensen-Shannon divergence; both 0: KL(p || q) is meant.
struct Mixture {
  float beta, rest;
};

// p = softmax(scale * p_raw[i]) and q alike, over M scores: values[i] = KL(p || q), or with m = beta p + rest q
// beta KL(p || m) + rest KL(q || m). In place, where asked for: raw[i, j] becomes weights[i] dvalues[i]/draw[i, j].
template <class P, class Q>
void divergence(P* p_raw, Q* q_raw, int64_t rows, int64_t M, float scale, Mixture mixture, const float* weights,
                float* values, bool grad_p, bool grad_q, int threads);

}  // namespace mk
