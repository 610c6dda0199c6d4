// rms_norm, silu_mul and rotate with their gradients: a row of the states at a time.
#include "layers.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "score_block.h"

namespace mk {
namespace {

constexpr int64_t kNormRows = 32;  // rows whose terms of a weight's gradient are added up in float32

template <class T>
MK_INLINE float norm_factor(const T* x, int64_t n, float epsilon) {
  double squares = 0;
  for (int64_t j0 = 0; j0 < n; j0 += kBlock) {
    const int64_t size = std::min(kBlock, n - j0);
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) terms[j] = load(x[j0 + j]) * load(x[j0 + j]);
    squares += sum(terms, size);
  }
  return 1.f / std::sqrt(static_cast<float>(squares / static_cast<double>(n)) + epsilon);
}

template <class T>
MK_INLINE void rms_norm_row(RmsNorm<T> norm, int64_t i) {
  const int64_t n = norm.x.width;
  const T *x = norm.x.hidden + i * n, *weight = norm.weight;
  T* out = norm.out + i * n;
  const float factor = norm_factor(x, n, norm.epsilon);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) store(out + j, load(weight[j]) * rounded<T>(load(x[j]) * factor));
}

// With f = 1 / sqrt(mean_j x_j^2 + epsilon) and c_j = dL/dout_j weight_j: dL/dx_j = f (c_j - x_j f^2 mean_k(c_k x_k)).
// The terms of the weight's gradient are added to sums, unless it is null.
template <class T>
MK_INLINE void rms_norm_grad_row(RmsNorm<T> norm, int64_t i, float* sums) {
  const int64_t n = norm.x.width;
  const T *x = norm.x.hidden + i * n, *weight = norm.weight, *out_grad = norm.out_grad + i * n;
  T* x_grad = norm.x_grad + i * n;
  const float factor = norm_factor(x, n, norm.epsilon);
  double dot = 0;
  for (int64_t j0 = 0; j0 < n; j0 += kBlock) {
    const int64_t size = std::min(kBlock, n - j0);
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) terms[j] = load(out_grad[j0 + j]) * load(weight[j0 + j]) * load(x[j0 + j]);
    dot += sum(terms, size);
  }
  const float along = static_cast<float>(dot / static_cast<double>(n)) * factor * factor;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j)
    store(x_grad + j, factor * (load(out_grad[j]) * load(weight[j]) - load(x[j]) * along));
  if (!sums) return;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) sums[j] += load(out_grad[j]) * rounded<T>(load(x[j]) * factor);
}

template <class T>
MK_INLINE void silu_mul_row(SiluMul<T> product, int64_t i) {
  const int64_t n = product.width;
  const T *gate = product.gate + i * n, *up = product.up + i * n;
  T* out = product.out + i * n;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float s = load(gate[j]);
    store(out + j, rounded<T>(s * sigmoid_(s)) * load(up[j]));
  }
}

template <class T>
MK_INLINE void silu_mul_grad_row(SiluMul<T> product, int64_t i) {
  const int64_t n = product.width;
  const T *gate = product.gate + i * n, *up = product.up + i * n, *out_grad = product.out_grad + i * n;
  T *gate_grad = product.gate_grad + i * n, *up_grad = product.up_grad + i * n;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float s = load(gate[j]), g = load(out_grad[j]), share = sigmoid_(s), silu = s * share;
    store(up_grad + j, g * silu);
    store(gate_grad + j, g * load(up[j]) * (share + silu * (1.f - share)));
  }
}

template <class T, class A>
MK_INLINE void rotate_row(Rotary<T, A> rotary, int64_t i) {
  const int64_t width = rotary.width, half = width / 2;
  const A *cosines = rotary.cosines + i * width, *sines = rotary.sines + i * width;
  for (int64_t h = 0; h < rotary.heads; ++h) {
    const T* x = rotary.x + (i * rotary.heads + h) * width;
    T* out = rotary.out + (h * rotary.rows + i) * width;
#pragma omp simd
    for (int64_t j = 0; j < half; ++j) {
      const float a = load(x[j]), b = load(x[half + j]);
      store(out + j, rounded<A>(a * load(cosines[j])) - rounded<A>(b * load(sines[j])));
      store(out + half + j, rounded<A>(b * load(cosines[half + j])) + rounded<A>(a * load(sines[half + j])));
    }
  }
}

template <class T, class A>
MK_INLINE void rotate_grad_row(Rotary<T, A> rotary, int64_t i) {
  const int64_t width = rotary.width, half = width / 2;
  const A *cosines = rotary.cosines + i * width, *sines = rotary.sines + i * width;
  for (int64_t h = 0; h < rotary.heads; ++h) {
    const T* out_grad = rotary.out_grad + (h * rotary.rows + i) * width;
    T* x_grad = rotary.x_grad + (i * rotary.heads + h) * width;
#pragma omp simd
    for (int64_t j = 0; j < half; ++j) {
      const float a = load(out_grad[j]), b = load(out_grad[half + j]);
      store(x_grad + j, a * load(cosines[j]) + b * load(sines[half + j]));
      store(x_grad + half + j, b * load(cosines[half + j]) - a * load(sines[j]));
    }
  }
}

MK_KERNEL(RmsNormRow, rms_norm_row)
MK_KERNEL(RmsNormGradRow, rms_norm_grad_row)
MK_KERNEL(SiluMulRow, silu_mul_row)
MK_KERNEL(SiluMulGradRow, silu_mul_grad_row)
MK_KERNEL(RotateRow, rotate_row)
MK_KERNEL(RotateGradRow, rotate_grad_row)

}  // namespace

template <class T>
void rms_norm(RmsNorm<T> norm, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < norm.x.rows; ++i) dispatch<RmsNormRow>(norm, i);
}

template <class T>
void rms_norm_grad(RmsNorm<T> norm, int threads) {
  const int64_t n = norm.x.width, blocks = (norm.x.rows + kNormRows - 1) / kNormRows;
  std::vector<float> sums(norm.weight_grad ? blocks * n : 0);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t block = 0; block < blocks; ++block) {
    float* run = norm.weight_grad ? sums.data() + block * n : nullptr;
    const int64_t end = std::min((block + 1) * kNormRows, norm.x.rows);
    for (int64_t i = block * kNormRows; i < end; ++i) dispatch<RmsNormGradRow>(norm, i, run);
  }
  if (!norm.weight_grad) return;
  for (int64_t j = 0; j < n; ++j) {
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += sums[block * n + j];
    store(norm.weight_grad + j, static_cast<float>(total));
  }
}

template <class T>
void silu_mul(SiluMul<T> product, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < product.rows; ++i) dispatch<SiluMulRow>(product, i);
}

template <class T>
void silu_mul_grad(SiluMul<T> product, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < product.rows; ++i) dispatch<SiluMulGradRow>(product, i);
}

template <class T, class A>
void rotate(Rotary<T, A> rotary, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rotary.rows; ++i) dispatch<RotateRow>(rotary, i);
}

template <class T, class A>
void rotate_grad(Rotary<T, A> rotary, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rotary.rows; ++i) dispatch<RotateGradRow>(rotary, i);
}

#define MK_INSTANTIATE(T)                            \
  template void rms_norm<T>(RmsNorm<T>, int);        \
  template void rms_norm_grad<T>(RmsNorm<T>, int);   \
  template void silu_mul<T>(SiluMul<T>, int);        \
  template void silu_mul_grad<T>(SiluMul<T>, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

#define MK_INSTANTIATE_ROTARY(T, A)                  \
  template void rotate<T, A>(Rotary<T, A>, int);     \
  template void rotate_grad<T, A>(Rotary<T, A>, int);
MK_INSTANTIATE_ROTARY(float, float)
MK_INSTANTIATE_ROTARY(bf16, bf16)
MK_INSTANTIATE_ROTARY(bf16, float)

}  // namespace mk
