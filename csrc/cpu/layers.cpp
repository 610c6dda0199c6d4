// rms_norm, silu_mul and rotate: a row of the states at a time.
#include "layers.h"

#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "score_block.h"

namespace mk {
namespace {

template <class T>
MK_INLINE void rms_norm_row(const T* x, int64_t n, const T* weight, float epsilon, T* out) {
  double squares = 0;
  for (int64_t j0 = 0; j0 < n; j0 += kBlock) {
    const int64_t size = std::min(kBlock, n - j0);
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) terms[j] = load(x[j0 + j]) * load(x[j0 + j]);
    squares += sum(terms, size);
  }
  const float factor = 1.f / std::sqrt(static_cast<float>(squares / static_cast<double>(n)) + epsilon);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) store(out + j, load(weight[j]) * rounded<T>(load(x[j]) * factor));
}

template <class T>
MK_INLINE void silu_mul_row(T* gate, const T* up, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float s = load(gate[j]);
    store(gate + j, rounded<T>(s * sigmoid_(s)) * load(up[j]));
  }
}

template <class T>
MK_INLINE void rotate_row(Rotary<T> rotary, int64_t i) {
  const int64_t width = rotary.width, half = width / 2;
  const T *cosines = rotary.cosines + i * width, *sines = rotary.sines + i * width;
  for (int64_t h = 0; h < rotary.heads; ++h) {
    const T* x = rotary.x + (i * rotary.heads + h) * width;
    T* out = rotary.out + (h * rotary.rows + i) * width;
#pragma omp simd
    for (int64_t j = 0; j < half; ++j) {
      const float a = load(x[j]), b = load(x[half + j]);
      store(out + j, rounded<T>(a * load(cosines[j])) - rounded<T>(b * load(sines[j])));
      store(out + half + j, rounded<T>(b * load(cosines[half + j])) + rounded<T>(a * load(sines[half + j])));
    }
  }
}

MK_KERNEL(RmsNormRow, rms_norm_row)
MK_KERNEL(SiluMulRow, silu_mul_row)
MK_KERNEL(RotateRow, rotate_row)

}  // namespace

template <class T>
void rms_norm(States<T> x, const T* weight, float epsilon, T* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < x.rows; ++i)
    dispatch<RmsNormRow>(x.hidden + i * x.width, x.width, weight, epsilon, out + i * x.width);
}

template <class T>
void silu_mul(T* gate, States<T> up, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < up.rows; ++i) dispatch<SiluMulRow>(gate + i * up.width, up.hidden + i * up.width, up.width);
}

template <class T>
void rotate(Rotary<T> rotary, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rotary.rows; ++i) dispatch<RotateRow>(rotary, i);
}

#define MK_INSTANTIATE(T)                                         \
  template void rms_norm<T>(States<T>, const T*, float, T*, int); \
  template void silu_mul<T>(T*, States<T>, int);                  \
  template void rotate<T>(Rotary<T>, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
