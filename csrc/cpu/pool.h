// Segment pooling over packed states: each segment's mean, weighted mean, last row or attention, L2-normalised in the
// same pass. The rows are read once in the forward pass, and once in the backward pass if weights or a query need them.
#pragma once
#include <cstdint>

namespace mk {

// The pooled row of a segment is sum_t c_t h_t, with c_t proportional to weights[t] e^(h_t . query).
struct Pooling {
  const int64_t* offsets = nullptr;  // [segments + 1]
  int64_t segments = 0;
  bool last = false;               // only the segment's last row
  bool normalize = false;          // divide by the norm (a zero row stays zero)
  const float* weights = nullptr;  // [rows] or null: 1
  const float* query = nullptr;    // [width] or null: 0
};

// Packed states hidden[rows, width].
template <class T>
struct States {
  const T* hidden = nullptr;
  int64_t rows = 0, width = 0;
};

// The results of the forward pass, which the backward pass reads.
struct Pooled {
  float* rows = nullptr;    // [segments, width]
  float* norms = nullptr;   // [segments], before normalising
  double* units = nullptr;  // [rows], only with weights or a query: c_t / weights[t], 0 if all c_t are 0
};

// Fill ``pooled``, units only for the rows in segments.
template <class T>
void pool_forward(States<T> states, Pooling pooling, Pooled pooled, int threads);

// The results of the backward pass, null if not requested. Every entry of hidden[rows, width] and weights[rows] is
// written. queries[segments, width] receives each segment's part of the query's gradient, query[width] their sum.
template <class T>
struct PoolGradients {
  T* hidden = nullptr;
  float* weights = nullptr;
  float* queries = nullptr;
  float* query = nullptr;
};

// Map pooled_grad[segments, width] to the gradients. states.hidden may be null unless there is a query or the weights
// need a gradient.
template <class T>
void pool_backward(const float* pooled_grad, Pooled pooled, States<T> states, Pooling pooling, PoolGradients<T> out,
                   int threads);

}  // namespace mk
