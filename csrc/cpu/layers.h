// The parts of a LLaMA layer between its matrix products, forward and backward, in one pass each. A forward rounds where
// transformers rounds, to T after each of its operations; a gradient is rounded once.
#pragma once
#include "pool.h"

namespace mk {

// out[i, j] = weight[j] * (x[i, j] / sqrt(mean_j x[i, j]^2 + epsilon)), the mean and the quotient in float32.
template <class T>
struct RmsNorm {
  States<T> x;
  const T* weight = nullptr;
  float epsilon = 0;
  T* out = nullptr;
  const T* out_grad = nullptr;
  T* x_grad = nullptr;
  T* weight_grad = nullptr;  // null: not wanted
};
template <class T>
void rms_norm(RmsNorm<T> norm, int threads);
template <class T>
void rms_norm_grad(RmsNorm<T> norm, int threads);

// out = silu(gate) * up, all [rows, width]; silu(s) = s / (1 + e^-s). out may be gate.
template <class T>
struct SiluMul {
  const T* gate = nullptr;
  const T* up = nullptr;
  T* out = nullptr;
  const T* out_grad = nullptr;
  T* gate_grad = nullptr;
  T* up_grad = nullptr;
  int64_t rows = 0, width = 0;
};
template <class T>
void silu_mul(SiluMul<T> product, int threads);
template <class T>
void silu_mul_grad(SiluMul<T> product, int threads);

// The rotary embedding of x[rows, heads, width] at the positions of cosines and sines [rows, width]: the halves (a, b) of
// a head become (a cos - b sin, b cos + a sin), each with its half of the cosines and sines. out[heads, rows, width].
// Products are rounded to A.
template <class T, class A>
struct Rotary {
  const T* x = nullptr;
  const A* cosines = nullptr;
  const A* sines = nullptr;
  T* out = nullptr;
  const T* out_grad = nullptr;
  T* x_grad = nullptr;
  int64_t rows = 0, heads = 0, width = 0;  // width is even
};
template <class T, class A>
void rotate(Rotary<T, A> rotary, int threads);
template <class T, class A>
void rotate_grad(Rotary<T, A> rotary, int threads);

}  // namespace mk
