// Segment pooling; pool.h describes the stages. The states are read from memory once: the dot products with a query or
// for slopes are computed for a few rows at a time, which are then read again from the cache.
#include "pool.h"

#include <stdexcept>
#include <string>

#include "block.cuh"

namespace mk::cuda {
namespace {

constexpr int kRows = kPieceRows;
constexpr int kChunks = 4;  // vectors of a row in one thread's registers; wider rows take several blocks
constexpr int kQuads = 4;   // columns per thread in the second stage, 16 bytes of float32
constexpr int kReads = 4;   // loads in flight per thread, as its 128 registers (two blocks per multiprocessor) permit

struct Task {
  Pooling pooling;
  int64_t rows, D, pitch;

  // Begin of segment i of segments + 2; the first and the last hold the rows outside all segments. In a captured graph
  // the offsets are unchecked, so they are clamped to the tensors.
  __device__ int64_t cut(int64_t i) const {
    if (i == 0) return 0;
    if (i > pooling.segments + 1) return rows;
    const int64_t offset = pooling.offsets[i - 1];
    return offset < 0 ? 0 : offset > rows ? rows : offset;
  }

  // Index of the segment's first piece. Pieces do not overlap: a segment of n rows has ceil(n / kRows) of them, the
  // rounded-down quotient grows by at least that many less one, and i adds one per segment.
  __device__ int64_t first_piece(int64_t i) const { return i + cut(i) / kRows; }

  __device__ bool softmax() const { return pooling.weights || pooling.query; }
};

struct Piece {
  int64_t begin, end;                    // its rows
  int64_t segment;                       // outside 0 .. segments - 1: rows outside all segments
  int64_t segment_begin, segment_end;
  bool inside;
};

// Called by all threads of the block: a search whose every step keeps one in kThreads of the segments.
__device__ Piece find_piece(const Task& task, int64_t number, Place me) {
  int64_t low = 0, n = task.pooling.segments + 2;
  while (n > 1) {
    const int64_t step = (n + kThreads - 1) / kThreads, at = me.thread * step;
    const int64_t before = __syncthreads_count(at < n && task.first_piece(low + at) <= number) - 1;
    low += before * step;
    n = n - before * step < step ? n - before * step : step;
  }
  Piece piece;
  piece.segment = low - 1;
  piece.inside = low > 0 && low <= task.pooling.segments;
  piece.segment_begin = task.cut(low);
  piece.segment_end = task.cut(low + 1);
  const int64_t begin = piece.segment_begin + (number - task.first_piece(low)) * kRows, end = begin + kRows;
  piece.begin = begin < piece.segment_end ? begin : piece.segment_end;
  piece.end = end < piece.segment_end ? end : piece.segment_end;
  return piece;
}

// The columns of a thread: kChunks vectors, blockDim.x apart.
template <int V>
struct Columns {
  int64_t first = (static_cast<int64_t>(blockIdx.y) * kChunks * blockDim.x + threadIdx.x) * V;
  int64_t step = static_cast<int64_t>(blockDim.x) * V;
  __device__ int64_t at(int chunk) const { return first + chunk * step; }
};

// Write the piece's sums[D] from the partial sums of the thread rows.
template <int V>
__device__ void put_sums(const Floats<V> (&sum)[kChunks], float* sums, int64_t D, Columns<V> columns) {
  __shared__ float part[kThreads * V];
  const int lanes = blockDim.y, width = blockDim.x * V;
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int64_t j = columns.at(chunk);
    if (lanes == 1) {
      if (j < D) write<V>(sums + j, sum[chunk]);
      continue;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < V; ++i) part[threadIdx.y * width + threadIdx.x * V + i] = sum[chunk].x[i];
    __syncthreads();
    if (threadIdx.y || j >= D) continue;
    Floats<V> total;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      double all = 0;
      for (int lane = 0; lane < lanes; ++lane) all += part[lane * width + threadIdx.x * V + i];
      total.x[i] = static_cast<float>(all);
    }
    write<V>(sums + j, total);
  }
}

constexpr double kLog2E = 1.4426950408889634;

// 2^(from - to) for a maximum that only grows, exact for whole numbers; 1 if it did not grow, -inf included.
__device__ inline float shrunk(double from, double to) {
  const float d = fmaxf(static_cast<float>(from - to), -200.f), whole = floorf(d);
  return to > from ? ldexpf(exp2f(d - whole), static_cast<int>(whole)) : 1.f;
}

struct Scale {  // of a piece: the largest exponent of 2 among its rows, and the sum of their factors relative to it
  double maximum, total;
};

// First stage: the sum of each piece's rows, multiplied by their factors relative to the piece's largest. units receives
// the scores, times log2(e). A weight is part of its row's exponent, so neither large weights nor large scores overflow.
// Without a query the exponents are whole: weights keep their bits, and those that sum to 0 have factors that do.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    gather(const T* hidden, Task task, float* piece_sums, Scale* piece_scales, double* units) {
  __shared__ double score[kRows], exponent[kRows];
  __shared__ float factor[kRows];
  const Place me;
  const Piece piece = find_piece(task, blockIdx.x, me);
  const bool softmax = task.softmax(), first_band = blockIdx.y == 0;
  if (!piece.inside) {
    const int64_t t = piece.begin + me.thread;
    if (softmax && first_band && t < piece.end) units[t] = 0;
    return;
  }
  if (piece.begin == piece.end || (task.pooling.last && piece.end != piece.segment_end)) return;
  const int64_t D = task.D, begin = task.pooling.last ? piece.end - 1 : piece.begin;
  const float* query = task.pooling.query;
  const Columns<V> columns;
  Floats<V> sum[kChunks] = {};
  double maximum = -INFINITY, total = 0;
  const int batch = query ? kWarps : kRows;  // few enough rows that the second read hits the cache
  for (int64_t t = begin; t < piece.end; t += batch) {
    const int count = static_cast<int>(piece.end - t < batch ? piece.end - t : batch);
    const T* rows = hidden + t * D;
    if (softmax) {
      if (query) {
        for (int r = me.warp; r < count; r += kWarps) {
          const double z = warp_dot<V, kReads>(rows + r * D, D, me.lane, [&](int64_t j) { return read<V>(query + j); });
          if (me.lane == 0) score[r] = z * kLog2E;
        }
        __syncthreads();
      } else if (me.thread < count) {
        score[me.thread] = 0;
      }
      float weight = 1;
      if (me.thread < count) {
        const int64_t row = t + me.thread;
        const double z = score[me.thread];
        if (task.pooling.weights) weight = task.pooling.weights[row];
        const double e = weight != 0 ? z + log2(fabs(static_cast<double>(weight))) : -INFINITY;
        exponent[me.thread] = query ? e : ceil(e);
        if (first_band) units[row] = z;
      }
      __syncthreads();
      double highest = maximum;
      for (int r = 0; r < count; ++r) highest = fmax(highest, exponent[r]);
      const float shrink = shrunk(maximum, highest);
      maximum = highest;
      if (me.thread < count) {
        const double size = weight != 0 ? weight * exp2(score[me.thread] - maximum) : 0;
        // an infinite score must not pass for a number
        factor[me.thread] = static_cast<float>(size + 0 * score[me.thread]);
      }
      __syncthreads();
      total *= shrink;
      for (int r = 0; r < count; ++r) total += factor[r];
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
        for (int i = 0; i < V; ++i) sum[chunk].x[i] *= shrink;
    }
#pragma unroll kReads
    for (int r = threadIdx.y; r < count; r += blockDim.y) {
      const float f = softmax ? factor[r] : 1.f;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        if (columns.at(chunk) >= D) continue;
        const Floats<V> h = read<V>(rows + r * D + columns.at(chunk));
#pragma unroll
        for (int i = 0; i < V; ++i) sum[chunk].x[i] += f * h.x[i];
      }
    }
  }
  put_sums<V>(sum, piece_sums + blockIdx.x * task.pitch, D, columns);
  if (softmax && first_band && me.thread == 0) piece_scales[blockIdx.x] = {maximum, total};
}

// Sum of kQuads columns from j on over count pieces, each multiplied by factor(piece). threadIdx.y threads share the
// pieces; the result is complete for threadIdx.y == 0.
template <class Factor>
__device__ void add_pieces(const float* piece_sums, int64_t pitch, int64_t j, int64_t first, int64_t count,
                           Factor factor, double (&sum)[kQuads]) {
  __shared__ double part[kThreads][kQuads];
  for (double& x : sum) x = 0;
  if (j < pitch) {
#pragma unroll kReads / 2
    for (int64_t p = first + threadIdx.y; p < first + count; p += blockDim.y) {
      const Floats<kQuads> piece = read<kQuads>(piece_sums + p * pitch + j);
      const double f = factor(p);
#pragma unroll
      for (int i = 0; i < kQuads; ++i) sum[i] += f * piece.x[i];
    }
  }
  const Place me;
  for (int i = 0; i < kQuads; ++i) part[me.thread][i] = sum[i];
  __syncthreads();
  if (threadIdx.y) return;
  for (int y = 1; y < static_cast<int>(blockDim.y); ++y)
    for (int i = 0; i < kQuads; ++i) sum[i] += part[y * blockDim.x + me.thread][i];
}

// Second stage: the mean of a segment, one strip of columns per block, and units from scores.
__global__ void __launch_bounds__(kThreads)
    combine(Task task, const float* piece_sums, const Scale* piece_scales, double* units, float* pooled) {
  const Place me;
  const int64_t D = task.D, wide = static_cast<int64_t>(blockDim.x) * kQuads, strips = (D + wide - 1) / wide;
  const int64_t segment = blockIdx.x / strips, strip = blockIdx.x % strips;
  const int64_t begin = task.cut(segment + 1), end = task.cut(segment + 2);
  const bool softmax = task.softmax(), any = begin < end;
  int64_t first = task.first_piece(segment + 1), count = any ? (end - begin + kRows - 1) / kRows : 0;
  if (task.pooling.last && any) first += count - 1, count = 1;
  double maximum = 0, total = task.pooling.last ? 1 : static_cast<double>(any ? end - begin : 0);
  if (softmax) {
    double mine = -INFINITY, sum = 0;
    for (int64_t p = me.thread; p < count; p += kThreads) mine = fmax(mine, piece_scales[first + p].maximum);
    maximum = block_max(mine, me);
    for (int64_t p = me.thread; p < count; p += kThreads) {
      const Scale scale = piece_scales[first + p];
      sum += scale.total * shrunk(scale.maximum, maximum);
    }
    total = block_sum(sum, me);
    for (int64_t t = begin + strip * kThreads + me.thread; t < end; t += strips * kThreads)
      units[t] = total != 0 ? exp2(units[t] - maximum) / total : 0;
  }
  const int64_t j = strip * wide + threadIdx.x * kQuads;
  double sum[kQuads];
  add_pieces(piece_sums, task.pitch, j, first, count,
             [&](int64_t p) { return softmax ? shrunk(piece_scales[p].maximum, maximum) : 1.f; }, sum);
  if (threadIdx.y) return;
  const double inverse = total != 0 ? 1 / total : 0;
  for (int i = 0; i < kQuads; ++i) {
    if (j + i >= D) break;
    const float mean = static_cast<float>(sum[i] * inverse);
    pooled[segment * D + j + i] = mean + 0 * mean;  // infinity becomes NaN: normalising by it would turn its neighbours into zeros
  }
}

// Compute the norms and divide the rows by them.
__global__ void __launch_bounds__(kThreads) normalize_rows(Task task, float* pooled, float* norms) {
  const Place me;
  float* row = pooled + blockIdx.x * task.D;
  double square = 0;
  for (int64_t j = me.thread; j < task.D; j += kThreads) square += static_cast<double>(row[j]) * row[j];
  float norm = static_cast<float>(sqrt(block_sum(square, me)));
  norm += 0 * norm;
  if (me.thread == 0) norms[blockIdx.x] = norm;
  if (!task.pooling.normalize || norm == 0) return;
  for (int64_t j = me.thread; j < task.D; j += kThreads) row[j] /= norm;
}

// The gradient of one segment's row before normalisation, which the backward pass reads.
struct Inner {
  const float *upstream, *pooled;  // [D]
  float radial, factor;

  template <int V>
  __device__ Floats<V> at(int64_t j) const {
    Floats<V> up = read<V>(upstream + j);
    const Floats<V> along = read<V>(pooled + j);
#pragma unroll
    for (int i = 0; i < V; ++i) up.x[i] = (up.x[i] - radial * along.x[i]) * factor;
    return up;
  }
};

template <class T>
struct Gradients {  // null if not requested
  T* hidden;
  float* weights;
  float* piece_queries;  // [pieces, pitch], their parts of the query's gradient
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    spread(const float* upstream, const float* pooled, const float* norms, const double* units, const T* hidden,
           Task task, Gradients<T> out) {
  __shared__ float own[kRows], along_query[kRows];
  const Place me;
  const Piece piece = find_piece(task, blockIdx.x, me);
  const bool first_band = blockIdx.y == 0;
  const int64_t D = task.D;
  const float *query = task.pooling.query, *weights = task.pooling.weights;
  const Columns<V> columns;
  Floats<V> sum[kChunks] = {};
  if (!piece.inside) {
    if (out.weights && first_band && piece.begin + me.thread < piece.end) out.weights[piece.begin + me.thread] = 0;
    for (int64_t t = piece.begin + threadIdx.y; out.hidden && t < piece.end; t += blockDim.y)
      for (int chunk = 0; chunk < kChunks; ++chunk)
        if (columns.at(chunk) < D) write<V>(out.hidden + t * D + columns.at(chunk), Floats<V>{});
  } else if (piece.begin < piece.end) {
    Inner inner{upstream + piece.segment * D, pooled + piece.segment * D, 0.f, 1.f};
    double along = 0;
    for (int64_t j = me.thread; j < D; j += kThreads) along += static_cast<double>(inner.upstream[j]) * inner.pooled[j];
    double centre = block_sum(along, me);
    if (task.pooling.normalize) {
      const float norm = norms[piece.segment];
      inner.radial = static_cast<float>(centre);
      inner.factor = norm != 0 ? 1 / norm : 0.f;
      centre = 0;
    }
    const bool slopes = out.weights || query;
    const int batch = slopes ? kWarps : kRows;
    for (int64_t t = piece.begin; t < piece.end; t += batch) {
      const int count = static_cast<int>(piece.end - t < batch ? piece.end - t : batch);
      // one warp per row if there are slopes to compute, else one thread
      const int stride = slopes ? kWarps : kThreads;
      for (int r = slopes ? me.warp : me.thread; r < count; r += stride) {
        const int64_t row = t + r;
        double slope = 0, c = 1.0 / (piece.segment_end - piece.segment_begin);
        if (slopes) slope = warp_dot<V, kReads / 2>(hidden + row * D, D, me.lane, [&](int64_t j) { return inner.at<V>(j); }) - centre;
        if (slopes && me.lane) continue;
        if (task.pooling.last) c = row == piece.segment_end - 1;
        if (task.softmax()) c = !weights ? units[row] : weights[row] != 0 ? weights[row] * units[row] : 0;
        own[r] = static_cast<float>(c);
        along_query[r] = static_cast<float>(c * slope);
        if (out.weights && first_band) out.weights[row] = static_cast<float>(units[row] * slope);
      }
      __syncthreads();
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int64_t j = columns.at(chunk);
        if (j >= D) continue;
        const Floats<V> gradient = inner.at<V>(j), q = query ? read<V>(query + j) : Floats<V>{};
#pragma unroll kReads / 2
        for (int r = threadIdx.y; r < count; r += blockDim.y) {
          const int64_t at = (t + r) * D + j;
          if (out.piece_queries) {
            const Floats<V> h = read<V>(hidden + at);
#pragma unroll
            for (int i = 0; i < V; ++i) sum[chunk].x[i] += along_query[r] * h.x[i];
          }
          if (!out.hidden) continue;
          Floats<V> d;
#pragma unroll
          for (int i = 0; i < V; ++i) d.x[i] = own[r] * gradient.x[i];
          if (query) {
#pragma unroll
            for (int i = 0; i < V; ++i) d.x[i] += along_query[r] * q.x[i];
          }
          write<V>(out.hidden + at, d);
        }
      }
      __syncthreads();  // before the next batch overwrites own and along_query
    }
  }
  if (out.piece_queries) put_sums<V>(sum, out.piece_queries + blockIdx.x * task.pitch, D, columns);
}

// d_query[D] = the sum of all pieces' parts.
__global__ void __launch_bounds__(kThreads)
    add_queries(const float* piece_queries, int64_t pieces, int64_t pitch, int64_t D, float* d_query) {
  const int64_t j = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kQuads;
  double sum[kQuads];
  add_pieces(piece_queries, pitch, j, 0, pieces, [](int64_t) { return 1.f; }, sum);
  if (threadIdx.y) return;
  for (int i = 0; i < kQuads && j + i < D; ++i) d_query[j + i] = static_cast<float>(sum[i]);
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("main_kernels: ") + what + ": " + cudaGetErrorString(status));
}

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, const Target& target, A... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(target.stream);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), name);
}

unsigned blocks(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

// Threads per row of ``vectors`` vectors; the rest of the block handles other rows.
unsigned columns_of(int64_t vectors) {
  unsigned columns = 32;
  while (columns < kThreads && columns < vectors) columns *= 2;
  return columns;
}

struct Shape {
  dim3 grid, block;
  Shape(int64_t pieces, int64_t D, int V) {
    const unsigned columns = columns_of((D + V - 1) / V);
    grid = dim3(static_cast<unsigned>(pieces), blocks(D, static_cast<int64_t>(columns) * V * kChunks));
    block = dim3(columns, kThreads / columns);
  }
};

template <class... Pointers>
bool vectors(int64_t D, int V, Pointers... pointers) {
  return D % V == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

Task task_of(const States& states, const Pooling& pooling) {
  return {pooling, states.rows, states.width, pool_pitch(states.width)};
}

template <class T, int V>
void forward(const States& states, const Pooling& pooling, double* units, const Target& target) {
  const Shape shape(pool_pieces(states.rows, pooling.segments), states.width, V);
  launch("pool_forward", gather<T, V>, shape.grid, shape.block, target, static_cast<const T*>(states.hidden),
         task_of(states, pooling), states.piece_sums, reinterpret_cast<Scale*>(states.piece_scales), units);
}

template <class T, int V>
void backward(const float* pooled_grad, const Pooled& pooled, const States& states, const Pooling& pooling,
              Gradients<T> out, const Target& target) {
  const Shape shape(pool_pieces(states.rows, pooling.segments), states.width, V);
  launch("pool_backward", spread<T, V>, shape.grid, shape.block, target, pooled_grad, pooled.rows, pooled.norms,
         pooled.units, static_cast<const T*>(states.hidden), task_of(states, pooling), out);
}

// call(T()) for the element type of the states.
template <class Call>
void with_type(DType dtype, Call call) {
  if (dtype == DType::float32) return call(float());
  if (dtype == DType::bfloat16) return call(__nv_bfloat16());
  return call(__half());
}

}  // namespace

void pool_forward(States states, Pooling pooling, Pooled pooled, Target target) {
  check(cudaSetDevice(target.device), "cudaSetDevice");
  with_type(states.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = 16 / sizeof(T);
    if (vectors(states.width, V, states.hidden, pooling.query, states.piece_sums))
      forward<T, V>(states, pooling, pooled.units, target);
    else
      forward<T, 1>(states, pooling, pooled.units, target);
  });
  const dim3 strip(64, kThreads / 64);
  const unsigned segments = static_cast<unsigned>(pooling.segments);
  const Task task = task_of(states, pooling);
  launch("pool_forward", combine, dim3(segments * blocks(states.width, strip.x * kQuads)), strip, target, task,
         states.piece_sums, reinterpret_cast<Scale*>(states.piece_scales), pooled.units, pooled.rows);
  launch("pool_forward", normalize_rows, dim3(segments), dim3(kThreads), target, task, pooled.rows, pooled.norms);
}

void pool_backward(const float* pooled_grad, Pooled pooled, States states, Pooling pooling, PoolGradients out,
                   Target target) {
  check(cudaSetDevice(target.device), "cudaSetDevice");
  with_type(states.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = 16 / sizeof(T);
    const Gradients<T> gradients{static_cast<T*>(out.hidden), out.weights, out.query ? states.piece_sums : nullptr};
    if (vectors(states.width, V, pooled_grad, pooled.rows, states.hidden, out.hidden, pooling.query, states.piece_sums))
      backward<T, V>(pooled_grad, pooled, states, pooling, gradients, target);
    else
      backward<T, 1>(pooled_grad, pooled, states, pooling, gradients, target);
  });
  if (!out.query) return;
  const dim3 strip(16, kThreads / 16);
  launch("pool_backward", add_queries, dim3(blocks(states.width, strip.x * kQuads)), strip, target,
         static_cast<const float*>(states.piece_sums), pool_pieces(states.rows, pooling.segments),
         pool_pitch(states.width), states.width, out.query);
}

}  // namespace mk::cuda
