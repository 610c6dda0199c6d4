// The parts that all kernels over a chunk of scores share: the score map, the mask, and float32 runs of column sums.
//
// A row is processed in blocks that stay in the first-level cache: map the raw products to scores once, then reduce.
// Partial sums are float32 within a block, in an order that does not depend on the instruction set (simd.h, sum), and
// float64 across blocks. Rows or column strips are the unit of parallel work and no sum crosses threads, so the bits do
// not depend on the number of threads.
#pragma once
#include <limits>

#include "scores.h"
#include "simd.h"

namespace mk {

constexpr int64_t kBlock = 1024;  // a multiple of kLanes
constexpr int64_t kStrip = 256;   // columns per thread at a time: a strip of some hundred rows fits its cache
constexpr int64_t kRun = 16;      // rows whose entries a column adds up in float32
constexpr float kNegInf = -std::numeric_limits<float>::infinity();

struct BlockRange {
  float top;     // largest score, NaN left out
  float poison;  // NaN if a raw product or an unexcluded score is not finite, else 0
};

// Scores s[n] of raw products. A bias of -inf gives a score of -inf. With a bias or a cap, a raw product that is not
// finite becomes NaN instead of a valid score.
template <class T>
MK_INLINE BlockRange map_block(const T* raw, int64_t n, ScoreMap map, const float* bias, float* s) {
  float top = kNegInf, poison = 0;
  if (map.cap > 0) {
    const float inverse = 1.f / map.cap, outer = map.scale * map.cap;
    if (bias) {
#pragma omp simd reduction(max : top) reduction(+ : poison)
      for (int64_t j = 0; j < n; ++j) {
        const float x = load(raw[j]), capped = outer * tanh_((x + bias[j]) * inverse);
        s[j] = select(bias[j] == kNegInf, kNegInf, capped) + x * 0.f;
        top = s[j] > top ? s[j] : top;
        poison += select(s[j] == kNegInf, 0.f, s[j] * 0.f);
      }
    } else {
#pragma omp simd reduction(max : top) reduction(+ : poison)
      for (int64_t j = 0; j < n; ++j) {
        const float x = load(raw[j]);
        s[j] = outer * tanh_(x * inverse) + x * 0.f;
        top = s[j] > top ? s[j] : top;
        poison += s[j] * 0.f;
      }
    }
  } else if (bias) {
#pragma omp simd reduction(max : top) reduction(+ : poison)
    for (int64_t j = 0; j < n; ++j) {
      const float x = load(raw[j]);
      s[j] = map.scale * (x + bias[j]) + x * 0.f;
      top = s[j] > top ? s[j] : top;
      poison += select(s[j] == kNegInf, 0.f, s[j] * 0.f);
    }
  } else {
#pragma omp simd reduction(max : top) reduction(+ : poison)
    for (int64_t j = 0; j < n; ++j) {
      s[j] = map.scale * load(raw[j]);
      top = s[j] > top ? s[j] : top;
      poison += s[j] * 0.f;
    }
  }
  return {top, poison};
}

// Set the masked entries of x[n] to fill. target counts from x[0] and may lie outside; columns may be null.
MK_INLINE void mask_block(float* x, int64_t n, const int32_t* columns, int32_t row, int64_t target, bool keep_target,
                          float fill) {
  const bool inside = target >= 0 && target < n;
  const float own = inside ? x[target] : 0.f;
  if (columns) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) x[j] = select(columns[j] == row, fill, x[j]);
  }
  if (inside) x[target] = keep_target ? own : fill;
}

// Store dL/draw[n] for g = dL/ds and finite scores s.
template <class T>
MK_INLINE void store_raw_grad(T* raw, const float* g, const float* s, int64_t n, ScoreMap map) {
  if (map.cap > 0) {  // tanh' = 1 - tanh^2, and s / (scale cap) is the tanh
    const float inverse = 1.f / (map.scale * map.cap);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float t = s[j] * inverse;
      store(raw + j, g[j] * map.scale * (1.f - t * t));
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) store(raw + j, g[j] * map.scale);
  }
}

// Fetch part of the next row of a tile: it is pages away, so the processor does not do it by itself.
template <class T>
MK_INLINE void prefetch(const T* row, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t j = 0; j < n; j += kLine) __builtin_prefetch(row + j);
}

// Move the float32 sums of a run of rows to the sums of all rows.
template <class Sum>
MK_INLINE void end_run(float* run, int64_t n, Sum* total) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    total[j] += run[j];
    run[j] = 0.f;
  }
}

}  // namespace mk
