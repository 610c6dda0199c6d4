// Operations of a block: 16-byte reads and writes of rows, and sums and maxima in a fixed order.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mk::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) { return x; }
template <>
__device__ inline __half narrow<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// V consecutive elements of a row as floats. If they fill 16-byte words, they are read and written as such and must be
// aligned to 16 bytes.
template <int V>
struct Floats {
  float x[V];
};

template <int V, class T>
__device__ inline Floats<V> read(const T* row) {
  Floats<V> out;
  if constexpr (sizeof(T) * V % sizeof(uint4) == 0) {
#pragma unroll
    for (int word = 0; word < static_cast<int>(sizeof(T) * V / sizeof(uint4)); ++word) {
      constexpr int each = sizeof(uint4) / sizeof(T);
      const uint4 bits = reinterpret_cast<const uint4*>(row)[word];
      T packed[each];
      memcpy(packed, &bits, sizeof bits);
#pragma unroll
      for (int i = 0; i < each; ++i) out.x[word * each + i] = widen(packed[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) out.x[i] = widen(row[i]);
  }
  return out;
}

template <int V, class T>
__device__ inline void write(T* row, const Floats<V>& values) {
  if constexpr (sizeof(T) * V % sizeof(uint4) == 0) {
#pragma unroll
    for (int word = 0; word < static_cast<int>(sizeof(T) * V / sizeof(uint4)); ++word) {
      constexpr int each = sizeof(uint4) / sizeof(T);
      T packed[each];
#pragma unroll
      for (int i = 0; i < each; ++i) packed[i] = narrow<T>(values.x[word * each + i]);
      uint4 bits;
      memcpy(&bits, packed, sizeof bits);
      __stcg(reinterpret_cast<uint4*>(row) + word, bits);  // explicit, because nvcc splits a store of four floats
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) row[i] = narrow<T>(values.x[i]);
  }
}

// A thread's position in its block of kThreads, whose shape may be two-dimensional.
struct Place {
  int thread = threadIdx.y * blockDim.x + threadIdx.x;
  int lane = thread % 32, warp = thread / 32;
};

// Return the sum in every thread, with the same bits.
__device__ inline double warp_sum(double x) {
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step);
  return x;
}

__device__ inline double block_sum(double x, Place me) {
  __shared__ double part[kWarps];
  x = warp_sum(x);
  __syncthreads();  // before overwriting the parts that another warp may still read
  if (me.lane == 0) part[me.warp] = x;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += part[warp];
  return sum;
}

// Return the maximum, ignoring NaN.
__device__ inline double block_max(double x, Place me) {
  __shared__ double part[kWarps];
  for (int step = 16; step; step /= 2) x = fmax(x, __shfl_xor_sync(kWholeWarp, x, step));
  __syncthreads();
  if (me.lane == 0) part[me.warp] = x;
  __syncthreads();
  double largest = part[0];
  for (int warp = 1; warp < kWarps; ++warp) largest = fmax(largest, part[warp]);
  return largest;
}

// A warp's dot product of row[D] with other(j), which returns floats j .. j + V - 1 of the other vector. The products of
// one read are added in float32, the reads in float64; kReads of them are in flight.
template <int V, int kReads, class T, class Other>
__device__ double warp_dot(const T* row, int64_t D, int lane, Other other) {
  double sum = 0;
#pragma unroll kReads
  for (int64_t j = lane * V; j < D; j += 32 * V) {
    const Floats<V> h = read<V>(row + j), x = other(j);
    float part = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) part += h.x[i] * x.x[i];
    sum += part;
  }
  return warp_sum(sum);
}

}  // namespace mk::cuda
