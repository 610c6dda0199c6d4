// Segment pooling over packed states: mean or last row of each segment, L2-normalised in the same pass.
#pragma once
#include <cstdint>

namespace mk {

// hidden[T, D], offsets[B + 1] -> pooled[B, D] float32 and norms[B], the length before normalising.
// last: the segment's last row instead of its mean. normalize: divide by the norm (a zero row stays zero).
template <class T>
void pool_forward(const T* hidden, const int64_t* offsets, int64_t B, int64_t D, bool last, bool normalize,
                  float* pooled, float* norms, int threads);

// upstream[B, D] float32 -> d_hidden[T, D], every row of it written. pooled and norms as the forward left them.
template <class T>
void pool_backward(const float* upstream, const float* pooled, const float* norms, const int64_t* offsets, int64_t B,
                   int64_t rows, int64_t D, bool last, bool normalize, T* d_hidden, int threads);

}  // namespace mk
