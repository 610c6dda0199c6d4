// A float32 accumulator kept as two 16-bit planes: `high` is the upper half of each float32 (a truncated bfloat16),
// `low` the lower half. Gradients of bfloat16 tensors are summed in full float32 this way, and when they are
// rounded at the end the result lies in `high`, already the bfloat16 tensor to hand out: no second buffer of that size.
#pragma once
#include <cstdint>

namespace mk {

// (high, low)[n] += x[n]
template <class T>
void accumulate(uint16_t* high, uint16_t* low, const T* x, int64_t n, int threads);

// high[rows, D] = bfloat16((high, low)[rows, D] * scale[row * stride]), rounded to nearest even; stride 0 or 1.
void round_scaled(uint16_t* high, const uint16_t* low, int64_t rows, int64_t D, const float* scale, int64_t stride,
                  int threads);

}  // namespace mk
