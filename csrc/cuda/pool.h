// Segment pooling on a CUDA device: cpu/pool.h for device memory, in an order of its own. No CUDA header is needed to
// call it.
//
// Segments are cut into pieces of at most kPieceRows rows, a block each, so a long one occupies the whole device; what
// the pieces leave is added in a second stage, in the order of the rows: the same input gives the same bits.
#pragma once
#include "../cpu/pool.h"

namespace mk::cuda {

enum class Kind { float32, bfloat16, float16 };

constexpr int64_t kPieceRows = 64;

// How many pieces there is room for; where each lies follows from the offsets alone.
constexpr int64_t pool_pieces(int64_t rows, int64_t segments) { return rows / kPieceRows + segments + 2; }

// The rows of piece_sums are padded, for reads of 16 bytes.
constexpr int64_t pool_pitch(int64_t D) { return (D + 3) / 4 * 4; }

// Where and when to run: a device's index and a cudaStream_t.
struct Target {
  int device;
  void* stream;
};

// A pass over hidden[rows, D] in device memory. piece_sums [pieces, pitch] float32 is scratch.
struct Pass {
  Kind kind;
  int64_t rows, D;
  Pooling pooling;
  float* piece_sums;
};

// As mk::pool_forward; units [rows] of all rows are written, 0 outside the segments. piece_scales [pieces, 2] float64 is
// scratch where there are weights or a query, and null with units where not.
void pool_forward(const void* hidden, Pass pass, double* piece_scales, float* pooled, float* norms, double* units,
                  Target target);

// As mk::pool_backward; what is null is not wanted. piece_sums is used for d_query alone.
void pool_backward(const float* upstream, const float* pooled, const float* norms, const double* units,
                   const void* hidden, Pass pass, void* d_hidden, float* d_weights, float* d_query, Target target);

}  // namespace mk::cuda
