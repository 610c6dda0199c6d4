// Divergences between the softmaxes of two chunks of scores, row by row, and their gradients in the same call.
#pragma once
#include <cstdint>

namespace mk {

// The mixture of the Jensen-Shannon divergence, m = beta p + rest q with rest = 1 - beta; both 0: KL(p || q).
struct Mixture {
  float beta = 0, rest = 0;
};

// p = softmax(scale * p_raw[i]) and q = softmax(scale * q_raw[i]), over ``columns`` scores.
template <class P, class Q>
struct ScorePair {
  P* p_raw = nullptr;
  Q* q_raw = nullptr;
  int64_t rows = 0, columns = 0;
  float scale = 1;
  Mixture mixture;
  const float* weights = nullptr;  // [rows]
  float* values = nullptr;         // [rows]
  bool grad_p = false, grad_q = false;
};

// values[i] = KL(p || q), or with a mixture m: beta KL(p || m) + rest KL(q || m). In place, if grad_p or grad_q is true:
// the raw scores become weights[i] dvalues[i]/draw[i, j].
template <class P, class Q>
void divergence(ScorePair<P, Q> pair, int threads);

}  // namespace mk
