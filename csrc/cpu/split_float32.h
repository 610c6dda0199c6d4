// A float32 accumulator kept as two 16-bit planes: `high` is the upper half of each float32 (a truncated bfloat16),
// `low` the lower half. Gradients of bfloat16 tensors are summed in full float32 this way. Rounded at the end, the
// result lies in `high`, already the bfloat16 tensor to return: no second buffer of that size.
#pragma once
#include <cstdint>

namespace mk {

struct SplitFloat32 {
  uint16_t* high = nullptr;
  uint16_t* low = nullptr;
  int64_t rows = 0, columns = 0;
};

// sum[rows, columns] += x[rows, columns]
template <class T>
void accumulate(SplitFloat32 sum, const T* x, int threads);

// sum.high = bfloat16(sum * scale[row * stride]), rounded to nearest even; stride 0 or 1.
void round_scaled(SplitFloat32 sum, const float* scale, int64_t stride, int threads);

}  // namespace mk
