// Segment pooling over packed states: each segment's mean, weighted mean, last row or attention, L2-normalised in the
// same pass. The rows are read once forward, and backward once where weights or a query need them.
#pragma once
#include <cstdint>

namespace mk {

// What becomes of the rows of each segment: sum_t c_t h_t, with c_t proportional to weights[t] e^(h_t . query).
struct Pooling {
  const int64_t* offsets;  // [segments + 1]
  int64_t segments;
  bool last;               // the segment's last row only
  bool normalize;          // divide by the norm (a zero row stays zero)
  const float* weights;    // [T] or null: 1
  const float* query;      // [D] or null: 0
};

// hidden[T, D] -> pooled[B, D] float32 and norms[B], the length before normalising. With weights or a query also
// units[T], c_t / weights[t] (0 where all c_t are), of the rows in segments.
template <class T>
void pool_forward(const T* hidden, int64_t D, Pooling pooling, float* pooled, float* norms, double* units,
                  int threads);

// What the backward fills, null where not wanted: hidden[rows, D] and weights[rows], every entry of them written, and
// queries[B, D], each segment's share of the gradient of the query, with their sum, query[D].
template <class T>
struct PoolGradients {
  T* hidden;
  float* weights;
  float* queries;
  float* query;
};

// upstream[B, D] float32 -> the gradients. pooled, norms and units as the forward left them; hidden may be null unless
// there is a query or weights want a gradient.
template <class T>
void pool_backward(const float* upstream, const float* pooled, const float* norms, const double* units,
                   const T* hidden, int64_t rows, int64_t D, Pooling pooling, PoolGradients<T> out, int threads);

}  // namespace mk
