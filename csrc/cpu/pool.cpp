// Segment pooling. One thread owns a segment, so sums are in row order for every number of threads.
#include "pool.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dispatch.h"

namespace mk {
namespace {

constexpr int kBlock = 16;  // rows summed in float32 before they enter a double sum: long segments do not drift

// total[D] += sum_r factor[r] rows[r, D]
template <int R, class T>
MK_INLINE void add_rows(const T* rows, const float* factor, int64_t D, double* total) {
#pragma omp simd
  for (int64_t j = 0; j < D; ++j) {
    float sum = 0;
    for (int r = 0; r < R; ++r) sum += factor[r] * load(rows[r * D + j]);
    total[j] += sum;
  }
}

template <class T>
MK_INLINE void add_block(const T* rows, const float* factor, int count, int64_t D, double* total) {
  if (count == kBlock) return add_rows<kBlock>(rows, factor, D, total);
  for (int r = 0; r < count; ++r) add_rows<1>(rows + r * D, factor + r, D, total);
}

template <class T>
MK_INLINE double dot(const T* row, const float* x, int64_t D) {
  double sum = 0;  // memory-bound, so the wider sum is free
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < D; ++j) sum += static_cast<double>(load(row[j])) * x[j];
  return sum;
}

constexpr double kLog2E = 1.4426950408889634;

// The rows' factors relative to the largest so far, as in an online softmax. A weight is part of its exponent, so
// neither large weights nor large scores overflow. Without a query they are relative to a power of two: weights keep
// their bits, and those that sum to 0 have factors that do. One per segment.
struct Softmax {
  bool has_query;
  double maximum = -std::numeric_limits<double>::infinity();  // base 2
  double total = 0;

  // Compute factor[count] from scores and weights; return the factor by which to multiply the earlier sums.
  double add(const double* score, const float* weight, int count, float* factor) {
    double exponent[kBlock], highest = maximum;
    for (int r = 0; r < count; ++r) {
      exponent[r] = score[r] * kLog2E + std::log2(std::fabs(static_cast<double>(weight[r])));
      if (!has_query) exponent[r] = std::ceil(exponent[r]);
      highest = weight[r] != 0 && exponent[r] > highest ? exponent[r] : highest;
    }
    const double shrink = highest > maximum ? std::exp2(maximum - highest) : 1.0;
    maximum = highest;
    total *= shrink;
    for (int r = 0; r < count; ++r) {
      const double exponential = weight[r] != 0 ? weight[r] * std::exp2(score[r] * kLog2E - maximum) : 0.0;
      factor[r] = static_cast<float>(exponential + 0 * score[r]);  // an infinite score must not pass for a number
      total += factor[r];
    }
    return shrink;
  }

  double unit(double score) const { return total != 0 ? std::exp2(score * kLog2E - maximum) / total : 0.0; }
};

template <class T>
MK_INLINE void pool_segment(const T* hidden, int64_t begin, int64_t end, int64_t D, Pooling pooling, double* sum,
                            float* pooled, float* norm, double* units) {
  std::fill(sum, sum + D, 0.0);
  Softmax softmax{pooling.query != nullptr};
  for (int64_t t = begin; t < end; t += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, end - t));
    float factor[kBlock], weight[kBlock];
    std::fill(factor, factor + kBlock, 1.f);
    if (units) {
      double score[kBlock] = {};
      for (int r = 0; r < count; ++r) {
        weight[r] = pooling.weights ? pooling.weights[t + r] : 1.f;
        if (pooling.query) score[r] = dot(hidden + (t + r) * D, pooling.query, D);
        units[t + r] = score[r];
      }
      const double shrink = softmax.add(score, weight, count, factor);
      if (shrink != 1) {
#pragma omp simd
        for (int64_t j = 0; j < D; ++j) sum[j] *= shrink;
      }
    } else {
      softmax.total += count;
    }
    add_block(hidden + t * D, factor, count, D, sum);
  }
  if (units) {
    for (int64_t t = begin; t < end; ++t) units[t] = softmax.unit(units[t]);
  }
  const double inverse = softmax.total != 0 ? 1 / softmax.total : 0.0;
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t j = 0; j < D; ++j) {
    const float mean = static_cast<float>(sum[j] * inverse);
    pooled[j] = mean + 0 * mean;  // infinity becomes NaN: normalising by it would turn its neighbours into zeros
    square += static_cast<double>(pooled[j]) * pooled[j];
  }
  *norm = static_cast<float>(std::sqrt(square));
  *norm += 0 * *norm;
  if (pooling.normalize && *norm != 0.f) {  // NaN passes
#pragma omp simd
    for (int64_t j = 0; j < D; ++j) pooled[j] /= *norm;
  }
}

// Set inner[D] to the gradient of the segment's row before normalisation; return its product with that row, which is 0
// if the row was normalised.
MK_INLINE double through_norm(const float* upstream, const float* pooled, float norm, int64_t D, bool normalize,
                              float* inner) {
  double along = 0;
#pragma omp simd reduction(+ : along)
  for (int64_t j = 0; j < D; ++j) along += static_cast<double>(upstream[j]) * pooled[j];
  const float radial = normalize ? static_cast<float>(along) : 0.f;
  const float factor = !normalize ? 1.f : norm != 0.f ? 1.f / norm : 0.f;
#pragma omp simd
  for (int64_t j = 0; j < D; ++j) inner[j] = (upstream[j] - radial * pooled[j]) * factor;
  return normalize ? 0.0 : along;
}

// inner and centre come from through_norm; uniform is c_t without weights and query.
template <class T>
MK_INLINE void spread_segment(const T* hidden, int64_t begin, int64_t end, int64_t D, Pooling pooling,
                              const double* units, const float* inner, double centre, double uniform, double* sum,
                              PoolGradients<T> out, float* query_share) {
  std::fill(sum, sum + D, 0.0);
  const bool slopes = out.weights || pooling.query;
  for (int64_t t = begin; t < end; t += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, end - t));
    float d_score[kBlock] = {};
    for (int r = 0; r < count; ++r) {
      const int64_t row = t + r;
      const double slope = slopes ? dot(hidden + row * D, inner, D) - centre : 0.0;
      if (out.weights) out.weights[row] = static_cast<float>(units[row] * slope);
      if (!out.hidden && !query_share) continue;
      double c = uniform;
      if (units) c = !pooling.weights ? units[row] : pooling.weights[row] != 0 ? pooling.weights[row] * units[row] : 0;
      const float own = static_cast<float>(c), along_query = static_cast<float>(c * slope);
      d_score[r] = along_query;
      if (!out.hidden) continue;
      T* d_row = out.hidden + row * D;
      if (pooling.query) {
#pragma omp simd
        for (int64_t j = 0; j < D; ++j) store(d_row + j, own * inner[j] + along_query * pooling.query[j]);
      } else {
#pragma omp simd
        for (int64_t j = 0; j < D; ++j) store(d_row + j, own * inner[j]);
      }
    }
    if (query_share) add_block(hidden + t * D, d_score, count, D, sum);
  }
  if (query_share) std::copy(sum, sum + D, query_share);
}

MK_KERNEL(PoolSegment, pool_segment)
MK_KERNEL(ThroughNorm, through_norm)
MK_KERNEL(SpreadSegment, spread_segment)

template <class T>
void clear(T* rows, int64_t begin, int64_t end, int64_t D) {
  if (rows) std::fill(rows + begin * D, rows + end * D, T(0));
}

}  // namespace

template <class T>
void pool_forward(States<T> states, Pooling pooling, Pooled pooled, int threads) {
  const int64_t D = states.width;
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> sum(D);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < pooling.segments; ++b) {
      const int64_t end = pooling.offsets[b + 1];
      const int64_t begin = pooling.last ? std::max(pooling.offsets[b], end - 1) : pooling.offsets[b];
      dispatch<PoolSegment>(states.hidden, begin, end, D, pooling, sum.data(), pooled.rows + b * D, pooled.norms + b,
                            pooled.units);
    }
  }
}

template <class T>
void pool_backward(const float* pooled_grad, Pooled pooled, States<T> states, Pooling pooling, PoolGradients<T> out,
                   int threads) {
  const int64_t rows = states.rows, D = states.width;
  const int64_t first = pooling.offsets[0], past = pooling.offsets[pooling.segments];
  clear(out.hidden, 0, first, D);
  clear(out.hidden, past, rows, D);
  clear(out.weights, 0, first, 1);
  clear(out.weights, past, rows, 1);
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> sum(D);
    std::vector<float> inner(D);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < pooling.segments; ++b) {
      const int64_t end = pooling.offsets[b + 1];
      const int64_t begin = pooling.last ? std::max(pooling.offsets[b], end - 1) : pooling.offsets[b];
      clear(out.hidden, pooling.offsets[b], begin, D);
      const double centre =
          dispatch<ThroughNorm>(pooled_grad + b * D, static_cast<const float*>(pooled.rows + b * D), pooled.norms[b], D,
                                pooling.normalize, inner.data());
      const double uniform = 1.0 / std::max<int64_t>(end - begin, 1);
      dispatch<SpreadSegment>(states.hidden, begin, end, D, pooling, static_cast<const double*>(pooled.units),
                              static_cast<const float*>(inner.data()), centre, uniform, sum.data(), out,
                              out.query ? out.queries + b * D : nullptr);
    }
  }
  if (!out.query) return;
#pragma omp parallel for num_threads(threads)
  for (int64_t j = 0; j < D; ++j) {
    double sum = 0;
    for (int64_t b = 0; b < pooling.segments; ++b) sum += out.queries[b * D + j];
    out.query[j] = static_cast<float>(sum);
  }
}

#define MK_INSTANTIATE(T)                                              \
  template void pool_forward<T>(States<T>, Pooling, Pooled, int); \
  template void pool_backward<T>(const float*, Pooled, States<T>, Pooling, PoolGradients<T>, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
