// The parts of a LLaMA layer between its matrix products, in one pass each, for forward passes without gradients. They
// round where transformers rounds: to T after each of its operations.
#pragma once
#include "pool.h"

namespace mk {

// out[i, j] = weight[j] * (x[i, j] / sqrt(mean_j x[i, j]^2 + epsilon)), the mean and the quotient in float32.
template <class T>
void rms_norm(States<T> x, const T* weight, float epsilon, T* out, int threads);

// gate = silu(gate) * up, both [rows, width]; silu(s) = s / (1 + e^-s).
template <class T>
void silu_mul(T* gate, States<T> up, int threads);

// The rotary embedding of x[rows, heads, width] at the positions of cosines and sines [rows, width]: the halves (a, b) of
// a head become (a cos - b sin, b cos + a sin), each with its half of the cosines and sines. out[heads, rows, width].
template <class T>
struct Rotary {
  const T* x = nullptr;
  const T* cosines = nullptr;
  const T* sines = nullptr;
  T* out = nullptr;
  int64_t rows = 0, heads = 0, width = 0;  // width is even
};
template <class T>
void rotate(Rotary<T> rotary, int threads);

}  // namespace mk
