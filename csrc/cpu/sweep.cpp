// Fused, vectorised passes over a chunk of scores. A row is walked in blocks that stay in the first-level cache:
// map the raw products to scores once, then reduce; partial sums are float32 within a block, in an order that does not
// depend on the instruction set (simd.h, sum), and float64 across blocks. Rows (or column strips) are the unit of parallel work and no sum crosses threads, so the bits do not depend on
// the number of threads.
#include "sweep.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dispatch.h"

namespace mk {
namespace {

constexpr int64_t kBlock = 1024;  // a multiple of kLanes
constexpr float kNegInf = -std::numeric_limits<float>::infinity();
constexpr float kNothing = -1e4f;  // e^x is 0 long before: a finite stand-in for the logarithm of 0

// With a bias, -inf is the score of an entry that it leaves out. With a bias or a cap, a raw product that is not finite
// becomes NaN: it passes for no score.
template <class T>
MK_INLINE void map_block(const T* raw, int64_t n, ScoreMap map, const float* bias, float* s) {
  if (map.cap > 0) {
    const float inverse = 1.f / map.cap, outer = map.scale * map.cap;
    if (bias) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const float x = load(raw[j]), capped = outer * tanh_((x + bias[j]) * inverse);
        s[j] = select(bias[j] == kNegInf, kNegInf, capped) + x * 0.f;
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const float x = load(raw[j]);
        s[j] = outer * tanh_(x * inverse) + x * 0.f;
      }
    }
  } else if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float x = load(raw[j]);
      s[j] = map.scale * (x + bias[j]) + x * 0.f;
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) s[j] = map.scale * load(raw[j]);
  }
}

// fill in x[n] wherever an entry is left out; target counts from x[0] and may lie outside.
MK_INLINE void leave_out(float* x, int64_t n, const int32_t* columns, int32_t row, int64_t target, bool keep_target,
                         float fill) {
  const bool inside = target >= 0 && target < n;
  const float own = inside ? x[target] : 0.f;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) x[j] = select(columns[j] == row, fill, x[j]);
  if (inside) x[target] = keep_target ? own : fill;
}

MK_INLINE float clamp(float x, float limit) { return select(x < -limit, -limit, select(x > limit, limit, x)); }

constexpr float kModerate = 40.f;  // e^s is a normal float for all |s| below, and what is e^87 smaller does not count

struct Shared {
  float exponentials, softplus, clipped;  // sums of e^(s - zero), log(1 + e^s), e^(clamp(s) - clamp(zero))
};

// All three from one exponential a score, for scores up to zero, |zero| <= kModerate. n <= kBlock.
MK_INLINE Shared reduce_shared(const float* s, int64_t n, float zero, float clip) {
  float exponentials[kBlock], softplus[kBlock], clipped[kBlock];
  const float unit = exp_(zero), low = exp_(-clip - zero), high = exp_(clip < zero ? clip - zero : 0.f);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float e = exp_(s[j] - zero), x = e * unit;  // x = e^s
    exponentials[j] = e;
    clipped[j] = select(s[j] > kNegInf, select(e < low, low, select(e > high, high, e)), 0.f);
    // log(1 + u) as log1p_ has it, for u = e^-|s|: x, or 1 / x where that is smaller
    const float z = select(x > 1.f, 1.f, x) / select(x > 1.f, 2.f * x + 1.f, 2.f + x);
    softplus[j] = select(s[j] > 0.f, s[j], 0.f) + atanh2_(z);
  }
  return {sum(exponentials, n), sum(softplus, n), sum(clipped, n) * exp_(zero - clamp(zero, clip))};
}

template <class T>
MK_INLINE void reduce_row(const T* raw, int64_t M, ScoreMap map, int64_t target, Mask mask, RowSums sums, int64_t i) {
  float s[kBlock], terms[kBlock];
  float maximum = sums.total ? sums.maximum[i] : kNegInf;
  double total = sums.total ? sums.total[i] : 0, weighted = sums.weighted ? sums.weighted[i] : 0;
  double clipped = sums.clipped ? sums.clipped[i] : 0, logits = 0, softplus = 0, above = 0;
  float poison = 0;  // 0 * s: NaN as soon as one score is not finite, but for those that the bias leaves out
  const float left_out = map.bias ? kNegInf : std::numeric_limits<float>::quiet_NaN();  // NaN equals nothing
  float at_target = 0;
  if (target >= 0 && target < M) {
    map_block(raw + target, 1, map, map.bias ? map.bias + target : nullptr, s);
    at_target = sums.target[i] = s[0];
  }
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    map_block(raw + j0, n, map, map.bias ? map.bias + j0 : nullptr, s);
    float top = kNegInf;
#pragma omp simd reduction(max : top) reduction(+ : poison)
    for (int64_t j = 0; j < n; ++j) {
      top = s[j] > top ? s[j] : top;
      poison += select(s[j] == left_out, 0.f, s[j] * 0.f);
    }
    if (mask.rows) {
      leave_out(s, n, mask.columns + j0, mask.rows[i], target - j0, mask.keep_target, kNegInf);
      top = kNegInf;
#pragma omp simd reduction(max : top)
      for (int64_t j = 0; j < n; ++j) top = s[j] > top ? s[j] : top;
    }
    if (sums.logits) {  // in double: an offset that all scores have costs no digits
      double part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t j = 0; j < n; ++j) part += select(s[j] > kNegInf, s[j], 0.f);
      logits += part;
    }
    bool shared = false;
    if (sums.total) {
      if (top > maximum) {
        if (maximum > kNegInf) {
          const double shift = static_cast<double>(maximum) - top, factor = std::exp(shift);
          weighted = factor * (weighted + shift * total);
          total *= factor;
          if (sums.clipped) clipped *= std::exp(static_cast<double>(clamp(maximum, sums.clip)) - clamp(top, sums.clip));
        }
        maximum = top;
      }
      const float zero = maximum > kNegInf ? maximum : 0.f;  // nothing seen yet: e^-inf is 0, not NaN
      float part = 0;
      if (sums.weighted) {
        float products[kBlock];
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const float x = s[j] - zero, e = exp_(x);
          terms[j] = e;
          products[j] = select(s[j] > kNegInf, e * x, 0.f);
        }
        part = sum(terms, n);
        weighted += sum(products, n);
      } else if (sums.softplus && std::fabs(zero) <= kModerate) {
        const Shared sum_of = reduce_shared(s, n, zero, sums.clip);
        part = sum_of.exponentials;
        softplus += sum_of.softplus;
        clipped += sum_of.clipped;
        shared = true;
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) terms[j] = exp_(s[j] - zero);
        part = sum(terms, n);
      }
      total += part;
      if (sums.clipped && !shared) {
        const float start = clamp(zero, sums.clip);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) terms[j] = select(s[j] > kNegInf, exp_(clamp(s[j], sums.clip) - start), 0.f);
        clipped += sum(terms, n);
      }
    }
    if (sums.softplus && !shared) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) terms[j] = softplus_(s[j]);
      softplus += sum(terms, n);
    }
    if (sums.rank) {
      int32_t count = 0;
#pragma omp simd reduction(+ : count)
      for (int64_t j = 0; j < n; ++j) count += s[j] > at_target ? 1 : 0;
      above += count;
    }
  }
  if (sums.total) {
    sums.maximum[i] = maximum;
    sums.total[i] = total + poison;
  }
  if (sums.weighted) sums.weighted[i] = weighted;
  if (sums.clipped) sums.clipped[i] = clipped + poison;
  if (sums.logits) sums.logits[i] += logits + poison;
  if (sums.softplus) sums.softplus[i] += softplus + poison;
  if (sums.rank) sums.rank[i] += static_cast<float>(above);
}

constexpr int64_t kRun = 16;  // rows whose entries a column adds up one after another in float32

// Moves the float32 sums of a run of rows to those of all rows.
template <class Sum>
MK_INLINE void end_run(float* run, int64_t n, Sum* total) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    total[j] += run[j];
    run[j] = 0.f;
  }
}

constexpr int64_t kStrip = 256;  // columns a thread takes at a time: a strip of some hundred rows fits its cache

template <class T>
MK_INLINE void reduce_column_strip(const T* raw, int64_t rows, int64_t M, int64_t j0, int64_t n, ScoreMap map,
                                   const int64_t* targets, Mask mask, ColumnSums sums) {
  float s[kStrip], top[kStrip], zero[kStrip], part[kStrip], above[kStrip];
  double total[kStrip] = {}, logits[kStrip];
  const float* bias = map.bias ? map.bias + j0 : nullptr;
  const float left_out = bias ? kNegInf : std::numeric_limits<float>::quiet_NaN();
  for (int64_t j = 0; j < n; ++j) {
    top[j] = sums.maximum[j0 + j];
    part[j] = above[j] = logits[j] = 0;
  }
  for (int64_t i = 0; i < rows; ++i) {
    map_block(raw + i * M + j0, n, map, bias, s);
    if (mask.rows)
      leave_out(s, n, mask.columns + j0, mask.rows[i], targets ? targets[i] - j0 : -1, mask.keep_target, kNegInf);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) top[j] = s[j] > top[j] ? s[j] : top[j];
  }
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) zero[j] = select(top[j] > kNegInf, top[j], 0.f);
  for (int64_t i = 0; i < rows; ++i) {
    if (i % kRun == 0) end_run(part, n, total);
    map_block(raw + i * M + j0, n, map, bias, s);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) part[j] += select(s[j] == left_out, 0.f, s[j] * 0.f);
    const int64_t own = targets ? targets[i] - j0 : -1;
    if (mask.rows) leave_out(s, n, mask.columns + j0, mask.rows[i], own, mask.keep_target, kNegInf);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) part[j] += exp_(s[j] - zero[j]);
    if (sums.logits) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) logits[j] += select(s[j] > kNegInf, s[j], 0.f);
    }
    if (sums.rank) {
      if (own >= 0 && own < n) s[own] = kNegInf;  // the pair itself never beats itself
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) above[j] += s[j] > sums.target[j0 + j] ? 1.f : 0.f;
    }
  }
  for (int64_t j = 0; j < n; ++j) {
    const float before = sums.maximum[j0 + j];
    const double factor = before > kNegInf ? std::exp(static_cast<double>(before) - top[j]) : 1.;
    sums.total[j0 + j] = sums.total[j0 + j] * factor + (total[j] + part[j]);
    sums.maximum[j0 + j] = top[j];
    if (sums.rank) sums.rank[j0 + j] += above[j];
    if (sums.logits) sums.logits[j0 + j] += logits[j];
  }
}

constexpr int64_t kTileRows = 64;  // a tile of kTileRows x kBlock scores stays in the second-level cache

template <class T>
MK_INLINE void reduce_tile(const T* raw, int64_t rows, int64_t n, int64_t stride, float scale, float reference,
                           float* row_part, float* col_part) {
  float run[kBlock] = {};
  std::fill(col_part, col_part + n, 0.f);
  for (int64_t i = 0; i < rows; ++i) {
    if (i % kRun == 0) end_run(run, n, col_part);
    const T* row = raw + i * stride;
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float e = exp_(scale * load(row[j]) - reference);
      terms[j] = e;
      run[j] += e;
    }
    row_part[i] = sum(terms, n);
  }
  end_run(run, n, col_part);
}

// targets, mask.rows and mask.columns are those of the tile, which begins at column j0; targets are kept.
template <class T>
MK_INLINE void reduce_masked_tile(const T* raw, int64_t rows, int64_t n, int64_t stride, float scale, float reference,
                                  const int64_t* targets, int64_t j0, Mask mask, float* row_part, float* col_part) {
  float run[kBlock] = {};
  std::fill(col_part, col_part + n, 0.f);
  for (int64_t i = 0; i < rows; ++i) {
    if (i % kRun == 0) end_run(run, n, col_part);
    const T* row = raw + i * stride;
    const int32_t id = mask.rows[i];
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float e = select(mask.columns[j] == id, 0.f, exp_(scale * load(row[j]) - reference));
      terms[j] = e;
      run[j] += e;
    }
    float part = sum(terms, n);
    const int64_t target = targets[i] - j0;
    if (target >= 0 && target < n && mask.columns[target] == id) {
      const float e = exp_(scale * load(row[target]) - reference);
      part += e;
      run[target] += e;
    }
    row_part[i] = part;
  }
  end_run(run, n, col_part);
}

template <bool masked, class T>
MK_INLINE float weigh_bounded_block(T* row, int64_t n, float scale, float reference, const int32_t* columns, int32_t id,
                                    float alpha, const float* beta, bool wants_share) {
  if (wants_share) {
    float terms[kBlock];
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const float x = load(row[j]), weight = (alpha + beta[j]) * exp_(scale * x - reference);
      const float g = masked ? select(columns[j] == id, 0.f, weight) : weight;
      terms[j] = g * x;
      store(row + j, g * scale);
    }
    return sum(terms, n);
  }
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float g = (alpha + beta[j]) * exp_(scale * load(row[j]) - reference) * scale;
    store(row + j, masked ? select(columns[j] == id, 0.f, g) : g);
  }
  return 0.f;
}

template <class T>
MK_INLINE void weigh_bounded_row(T* row, int64_t M, float scale, float reference, int64_t target,
                                 const int32_t* columns, int32_t id, float alpha, const float* beta, float d,
                                 double* d_scale) {
  const float at_target = load(row[target]);
  const float own = (alpha + beta[target]) * exp_(scale * at_target - reference);
  double share = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    if (columns)
      share += weigh_bounded_block<true>(row + j0, n, scale, reference, columns + j0, id, alpha, beta + j0, d_scale);
    else
      share += weigh_bounded_block<false>(row + j0, n, scale, reference, columns, id, alpha, beta + j0, d_scale);
  }
  store(row + target, (own + d) * scale);
  const float left_out = columns && columns[target] == id ? own : 0.f;
  if (d_scale) *d_scale = share + (static_cast<double>(d) + left_out) * at_target;
}

template <class T>
MK_INLINE void add_column_strip(const T* raw, int64_t rows, int64_t M, int64_t n, float* sums) {
  double total[kStrip] = {};
  float run[kStrip] = {};
  for (int64_t i = 0; i < rows; ++i) {
    if (i % kRun == 0) end_run(run, n, total);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) run[j] += load(raw[i * M + j]);
  }
  end_run(run, n, total);
  for (int64_t j = 0; j < n; ++j) sums[j] += static_cast<float>(total[j]);
}

template <class T>
MK_INLINE void weigh_row(T* raw, int64_t i, int64_t M, ScoreMap map, const int64_t* targets, Mask mask, Upstream up,
                         double* d_scale) {
  float s[kBlock], g[kBlock];
  const float lowest = -map.scale * map.cap;  // a finite stand-in for -inf, where tanh has no slope
  T* row = raw + i * M;
  const int64_t target = targets ? targets[i] : -1;
  double against_score = 0;
  for (int64_t j0 = 0; j0 < M; j0 += kBlock) {
    const int64_t n = std::min(kBlock, M - j0);
    map_block(row + j0, n, map, map.bias ? map.bias + j0 : nullptr, s);
    const float ui = up.u ? up.u[i] : 0.f;
    if (up.a) {
      const float ai = up.a[i], ri = up.r.high[i], ri_low = up.r.low[i];
      if (up.h) {
        const float hi = up.h[i];
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const float x = (s[j] - ri) - ri_low;
          g[j] = (ai + hi * select(x < kNothing, kNothing, x)) * exp_(x) + ui;
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) g[j] = ai * exp_((s[j] - ri) - ri_low) + ui;
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) g[j] = ui;
    }
    if (up.b) {
      const float *b = up.b + j0, *c = up.c.high + j0, *c_low = up.c.low + j0;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) g[j] += b[j] * exp_((s[j] - c[j]) - c_low[j]);
    }
    if (up.e) {
      const float ei = up.e[i];
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) g[j] += ei * sigmoid_(s[j]);
    }
    if (up.v) {
      const float* v = up.v + j0;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) g[j] += v[j];
    }
    if (mask.rows) leave_out(g, n, mask.columns + j0, mask.rows[i], target - j0, mask.keep_target, 0.f);
    if (map.bias) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        g[j] = select(s[j] == kNegInf, 0.f, g[j]);
        s[j] = select(s[j] == kNegInf, lowest, s[j]);
      }
    }
    if (up.d && target >= j0 && target < j0 + n) g[target - j0] += up.d[i];
    if (d_scale) {
      float terms[kBlock];
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) terms[j] = g[j] * s[j];
      against_score += sum(terms, n);
    }
    if (map.cap > 0) {  // tanh' = 1 - tanh^2, and s / (scale cap) is the tanh
      const float inverse = 1.f / (map.scale * map.cap);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const float t = s[j] * inverse;
        store(row + j0 + j, g[j] * map.scale * (1.f - t * t));
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) store(row + j0 + j, g[j] * map.scale);
    }
  }
  if (d_scale) d_scale[i] = against_score / map.scale;
}

MK_KERNEL(ReduceRow, reduce_row)
MK_KERNEL(ReduceColumnStrip, reduce_column_strip)
MK_KERNEL(ReduceTile, reduce_tile)
MK_KERNEL(ReduceMaskedTile, reduce_masked_tile)
MK_KERNEL(WeighRow, weigh_row)
MK_KERNEL(WeighBoundedRow, weigh_bounded_row)
MK_KERNEL(AddColumnStrip, add_column_strip)

}  // namespace

template <class T>
void reduce_rows(const T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, Mask mask, RowSums sums,
                 int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; ++i)
    dispatch<ReduceRow>(raw + i * M, M, map, targets ? targets[i] : -1, mask, sums, i);
}

template <class T>
void reduce_bounded(const T* raw, int64_t rows, int64_t M, float scale, float reference, const int64_t* targets,
                    Mask mask, double* row_total, float* target_score, double* col_total, int threads) {
  const int64_t down = (rows + kTileRows - 1) / kTileRows, across = (M + kBlock - 1) / kBlock;
  std::vector<float> row_parts(across * rows), col_parts(down * M);  // one entry a tile: no sum crosses threads
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (int64_t u = 0; u < down; ++u)
    for (int64_t v = 0; v < across; ++v) {
      const int64_t i0 = u * kTileRows, j0 = v * kBlock;
      const int64_t height = std::min(kTileRows, rows - i0), width = std::min(kBlock, M - j0);
      float *row_part = row_parts.data() + v * rows + i0, *col_part = col_parts.data() + u * M + j0;
      const T* tile = raw + i0 * M + j0;
      if (mask.rows)
        dispatch<ReduceMaskedTile>(tile, height, width, M, scale, reference, targets + i0, j0,
                                   Mask{mask.rows + i0, mask.columns + j0, true}, row_part, col_part);
      else
        dispatch<ReduceTile>(tile, height, width, M, scale, reference, row_part, col_part);
    }
  for (int64_t v = 0; v < across; ++v)
    for (int64_t i = 0; i < rows; ++i) row_total[i] += row_parts[v * rows + i];
  for (int64_t u = 0; u < down; ++u)
    for (int64_t j = 0; j < M; ++j) col_total[j] += col_parts[u * M + j];
  for (int64_t i = 0; i < rows; ++i) target_score[i] = scale * load(raw[i * M + targets[i]]);
}

template <class T>
void reduce_columns(const T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, Mask mask,
                    ColumnSums sums, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t j0 = 0; j0 < M; j0 += kStrip)
    dispatch<ReduceColumnStrip>(raw, rows, M, j0, std::min(kStrip, M - j0), map, targets, mask, sums);
}

template <class T>
void weigh(T* raw, int64_t rows, int64_t M, ScoreMap map, const int64_t* targets, Mask mask, Upstream up,
           double* d_scale, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; ++i) dispatch<WeighRow>(raw, i, M, map, targets, mask, up, d_scale);
}

template <class T>
void weigh_bounded(T* raw, int64_t rows, int64_t M, float scale, float reference, const int64_t* targets, Mask mask,
                   const float* alpha, const float* beta, const float* d, double* d_scale, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < rows; ++i)
    dispatch<WeighBoundedRow>(raw + i * M, M, scale, reference, targets[i], mask.rows ? mask.columns : nullptr,
                              mask.rows ? mask.rows[i] : 0, alpha[i], beta, d ? d[i] : 0.f,
                              d_scale ? d_scale + i : nullptr);
}

template <class T>
void add_columns(const T* raw, int64_t rows, int64_t M, float* sums, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t j0 = 0; j0 < M; j0 += kStrip)
    dispatch<AddColumnStrip>(raw + j0, rows, M, std::min(kStrip, M - j0), sums + j0);
}

#define MK_INSTANTIATE(T)                                                                                           \
  template void reduce_rows<T>(const T*, int64_t, int64_t, ScoreMap, const int64_t*, Mask, RowSums, int);           \
  template void reduce_columns<T>(const T*, int64_t, int64_t, ScoreMap, const int64_t*, Mask, ColumnSums, int);     \
  template void reduce_bounded<T>(const T*, int64_t, int64_t, float, float, const int64_t*, Mask, double*, float*,  \
                                  double*, int);                                                                    \
  template void add_columns<T>(const T*, int64_t, int64_t, float*, int);                                            \
  template void weigh<T>(T*, int64_t, int64_t, ScoreMap, const int64_t*, Mask, Upstream, double*, int);             \
  template void weigh_bounded<T>(T*, int64_t, int64_t, float, float, const int64_t*, Mask, const float*,            \
                                 const float*, const float*, double*, int);
MK_INSTANTIATE(float)
MK_INSTANTIATE(bf16)

}  // namespace mk
