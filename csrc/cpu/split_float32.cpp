// accumulate and round_scaled: see split_float32.h for the layout.
#include "split_float32.h"

#include <algorithm>

#include "dispatch.h"

namespace mk {
namespace {

constexpr int64_t kGrain = 16384;

MK_INLINE float join(uint16_t high, uint16_t low) {
  return bits<float>((static_cast<uint32_t>(high) << 16) | static_cast<uint32_t>(low));
}

template <class T>
MK_INLINE void accumulate_range(uint16_t* high, uint16_t* low, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = bits<uint32_t>(join(high[i], low[i]) + load(x[i]));
    high[i] = static_cast<uint16_t>(u >> 16);
    low[i] = static_cast<uint16_t>(u);
  }
}

MK_INLINE void round_scaled_range(uint16_t* high, const uint16_t* low, int64_t n, float scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(high + i, join(high[i], low[i]) * scale);
}

MK_KERNEL(Accumulate, accumulate_range)
MK_KERNEL(RoundScaled, round_scaled_range)

}  // namespace

template <class T>
void accumulate(SplitFloat32 sum, const T* x, int threads) {
  const int64_t n = sum.rows * sum.columns;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < n; i += kGrain)
    dispatch<Accumulate>(sum.high + i, sum.low + i, x + i, std::min(kGrain, n - i));
}

void round_scaled(SplitFloat32 sum, const float* scale, int64_t stride, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < sum.rows; ++i)
    dispatch<RoundScaled>(sum.high + i * sum.columns, static_cast<const uint16_t*>(sum.low + i * sum.columns),
                          sum.columns, scale[i * stride]);
}

template void accumulate<float>(SplitFloat32, const float*, int);
template void accumulate<bf16>(SplitFloat32, const bf16*, int);

}  // namespace mk
