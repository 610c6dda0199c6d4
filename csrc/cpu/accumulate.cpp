// Split-plane float32 accumulation; see accumulate.h for the layout.
#include "accumulate.h"

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
void accumulate(uint16_t* high, uint16_t* low, const T* x, int64_t n, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < n; i += kGrain) 
    dispatch<Accumulate>(high + i, low + i, x + i, std::min(kGrain, n - i));
}

void round_scaled(uint16_t* high, const uint16_t* low, int64_t rows, int64_t D, const float* scale, int64_t stride,
                  int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; ++i) 
    dispatch<RoundScaled>(high + i * D, low + i * D, D, scale[i * stride]);
}

template void accumulate<float>(uint16_t*, uint16_t*, const float*, int64_t, int);
template void accumulate<bf16>(uint16_t*, uint16_t*, const bf16*, int64_t, int);

}  // namespace mk
