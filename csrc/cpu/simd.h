// Scalar building blocks that the compiler vectorises: exp, tanh, bfloat16, and sums in one order for all vector lengths.
#pragma once
#include <cstdint>
#include <cstring>

#define MK_INLINE inline __attribute__((always_inline))

namespace mk {

using bf16 = uint16_t;  // the bits of a bfloat16

template <class To, class From>
MK_INLINE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "bits needs equal sizes");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

MK_INLINE float load(float x) { return x; }
MK_INLINE float load(bf16 x) { return bits<float>(static_cast<uint32_t>(x) << 16); }

// The bits of x as float32 whose upper half is x as bfloat16: rounded to nearest even, a NaN stays one.
MK_INLINE uint32_t round_to_bf16(float x) {
  const uint32_t u = bits<uint32_t>(x);
  return x != x ? 0x7FC00000u : u + 0x7FFFu + ((u >> 16) & 1u);
}

MK_INLINE void store(float* p, float x) { *p = x; }
MK_INLINE void store(bf16* p, float x) { *p = static_cast<bf16>(round_to_bf16(x) >> 16); }

// x as T holds it.
template <class T>
MK_INLINE float rounded(float x) {
  return sizeof(T) == sizeof(float) ? x : bits<float>(round_to_bf16(x) & 0xFFFF0000u);
}

// condition ? a : b without a branch. GCC turns the operator into two paths, and if one of them is constant, it leaves
// the loop scalar on instruction sets without masked instructions (AVX2, SSE).
MK_INLINE float select(bool condition, float a, float b) {
  const uint32_t mask = -static_cast<uint32_t>(condition);
  return bits<float>((bits<uint32_t>(a) & mask) | (bits<uint32_t>(b) & ~mask));
}

MK_INLINE float absolute(float x) { return bits<float>(bits<uint32_t>(x) & 0x7FFFFFFFu); }

// e^x for x <= 88: 1 ulp or so, exactly 0 below -87.3, NaN for NaN and +Inf.
// Cody-Waite reduction, then the polynomial of degree 6 with the least relative error on [-ln2/2, ln2/2], 3e-9. Its terms
// are added in pairs, so fewer of them wait for each other.
MK_INLINE float exp_(float x) {
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f, r2 = r * r;
  const float low = 4.9999993432e-1f + 1.6666520397e-1f * r, high = 4.1668390831e-2f + 8.3687453201e-3f * r;
  const float p = ((low + r2 * (high + r2 * 1.3814537894e-3f)) * r2 + r) + 1.f;
  const uint32_t exponent = (bits<uint32_t>(shifted) << 23) + 0x3F800000u;
  return select(x < -87.3f, 0.f, p * bits<float>(exponent));
}

// 1 / (1 + e^-s), at least e^-87: with larger exponents the sum would overflow.
MK_INLINE float sigmoid_(float s) { return 1.f / (1.f + exp_(select(s < -87.f, 87.f, -s))); }

// Natural logarithm of a positive normal float, about 1 ulp; garbage for anything else, NaN included.
// Cephes: the mantissa is reduced to [sqrt(1/2), sqrt(2)), where a polynomial suffices.
MK_INLINE float log_(float x) {
  const uint32_t u = bits<uint32_t>(x);
  const int32_t exponent = static_cast<int32_t>(u - 0x3F3504F3u) >> 23;
  const float n = static_cast<float>(exponent);
  const float f = bits<float>(u - (static_cast<uint32_t>(exponent) << 23)) - 1.f, z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float tail = p * f * z - n * 2.12194440e-4f - 0.5f * z;
  return (f + tail) + n * 0.693359375f;
}

// log(1 + q) for q >= 0, relative error about 1 ulp for every q; NaN for NaN.
MK_INLINE float log1p_(float q) {
  const float w = 1.f + q;  // rounded, which costs the digits of a small q
  return log_(w) + (q - (w - 1.f)) / w;
}

// e^x - 1 - x for |x| <= 1/2, to a few ulp of itself: not negative, and of second order in x.
MK_INLINE float excess_(float x) {
  float p = 1.f / 40320.f;
  p = p * x + 1.f / 5040.f;
  p = p * x + 1.f / 720.f;
  p = p * x + 1.f / 120.f;
  p = p * x + 1.f / 24.f;
  p = p * x + 1.f / 6.f;
  p = p * x + 0.5f;
  return p * x * x;
}

// tanh to about 1 ulp: odd polynomial near zero (where 1 - 2/(e^2x + 1) would cancel), exp elsewhere.
MK_INLINE float tanh_(float x) {
  const float a = absolute(x);
  const float b = select(a > 15.f, 15.f, a);  // tanh is 1 in float32 from 9 on; a NaN passes through
  const float z = b * b;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = b + b * z * p;
  const float far = 1.f - 2.f / (exp_(2.f * b) + 1.f);
  const float t = select(b < 0.625f, near, far);
  return bits<float>(bits<uint32_t>(t) | (bits<uint32_t>(x) & 0x80000000u));
}

constexpr int64_t kLanes = 64;

// Append zeros to x[n] up to the next multiple of kLanes. Returns the number of rows of kLanes entries.
MK_INLINE int64_t pad(float* x, int64_t n) {
  const int64_t rows = (n + kLanes - 1) / kLanes;
  for (int64_t j = n; j < rows * kLanes; ++j) x[j] = 0.f;
  return rows;
}

MK_INLINE float sum_lanes(float* lane) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
#pragma omp simd
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

// Sum of x[n]. The buffer must extend to the next multiple of kLanes and is overwritten from n on. A compiler's reduction
// adds n / (vector length) terms one after another, so shorter vectors lose more digits. These lanes and the tree that
// joins them are the same for every instruction set.
MK_INLINE float sum(float* x, int64_t n) {
  const int64_t rows = pad(x, n);
  float lane[kLanes] = {};
  for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lane[l] += x[r * kLanes + l];
  }
  return sum_lanes(lane);
}

// Sum of log(1 + u[n]) for u in [0, 1], n at most 64 * kLanes; the buffer as for sum. One logarithm per lane: q is the
// product of the factors 1 + u, minus 1. All terms of q are positive, so it keeps the digits of small u.
MK_INLINE float sum_log1p(float* u, int64_t n) {
  const int64_t rows = pad(u, n);
  float q[kLanes] = {};
  for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) q[l] += q[l] * u[r * kLanes + l] + u[r * kLanes + l];
  }
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l) q[l] = log1p_(q[l]);
  return sum_lanes(q);
}

}  // namespace mk
