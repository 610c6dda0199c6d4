// Segment pooling; one thread owns a segment, so sums are in row order whatever the number of threads.
#include "pool.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

namespace mk {
namespace {

template <class T>
MK_CLONES void pool_segment(const T* hidden, int64_t begin, int64_t end, int64_t D, bool normalize, float* pooled,
                            float* norm) {
  std::fill(pooled, pooled + D, 0.f);
  for (int64_t t = begin; t < end; ++t) {
    const T* row = hidden + t * D;
#pragma omp simd
    for (int64_t j = 0; j < D; ++j) pooled[j] += load(row[j]);
  }
  const float inverse = end > begin ? 1.f / static_cast<float>(end - begin) : 0.f;
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t j = 0; j < D; ++j) {
    pooled[j] *= inverse;
    square += static_cast<double>(pooled[j]) * pooled[j];
  }
  *norm = static_cast<float>(std::sqrt(square));
  if (normalize && *norm != 0.f) {  // NaN passes
#pragma omp simd
    for (int64_t j = 0; j < D; ++j) pooled[j] /= *norm;
  }
}

template <class T>
MK_CLONES void spread_segment(const float* upstream, const float* pooled, float norm, int64_t begin, int64_t end,
                              int64_t length, int64_t D, bool normalize, T* d_hidden) {
  double along = 0;  // the component along the pooled row does not change a normalised one
  float factor = 1.f / static_cast<float>(length);
  if (normalize) {
    for (int64_t j = 0; j < D; ++j) along += static_cast<double>(upstream[j]) * pooled[j];
    factor = norm != 0.f ? factor / norm : 0.f;
  }
  const float radial = static_cast<float>(along);
  for (int64_t t = begin; t < end; ++t) {
    T* row = d_hidden + t * D;
#pragma omp simd
    for (int64_t j = 0; j < D; ++j) store(row + j, (upstream[j] - radial * pooled[j]) * factor);
  }
}

}  // namespace

template <class T>
void pool_forward(const T* hidden, const int64_t* offsets, int64_t B, int64_t D, bool last, bool normalize,
                  float* pooled, float* norms, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t b = 0; b < B; ++b) {
    const int64_t end = offsets[b + 1];
    const int64_t begin = last ? std::max(offsets[b], end - 1) : offsets[b];
    pool_segment(hidden, begin, end, D, normalize, pooled + b * D, norms + b);
  }
}

template <class T>
void pool_backward(const float* upstream, const float* pooled, const float* norms, const int64_t* offsets, int64_t B,
                   int64_t rows, int64_t D, bool last, bool normalize, T* d_hidden, int threads) {
  std::fill(d_hidden, d_hidden + (B ? offsets[0] : rows) * D, T(0));
  if (B) std::fill(d_hidden + offsets[B] * D, d_hidden + rows * D, T(0));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t b = 0; b < B; ++b) {
    const int64_t end = offsets[b + 1];
    const int64_t begin = last ? std::max(offsets[b], end - 1) : offsets[b];
    std::fill(d_hidden + offsets[b] * D, d_hidden + begin * D, T(0));
    spread_segment(upstream + b * D, pooled + b * D, norms[b], begin, end, end - begin, D, normalize, d_hidden);
  }
}

#define MK_INSTANTIATE(T)                                                                                            \
  template void pool_forward<T>(const T*, const int64_t*, int64_t, int64_t, bool, bool, float*, float*, int);        \
  template void pool_backward<T>(const float*, const float*, const float*, const int64_t*, int64_t, int64_t, int64_t, \
                                 bool, bool, T*, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
