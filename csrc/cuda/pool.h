// Segment pooling on a CUDA device: cpu/pool.h for device memory, with a different order of summation. Callers need no
// CUDA header.
//
// Segments are cut into pieces of at most kPieceRows rows, one block each, so a long segment occupies the whole device.
// A second stage adds the pieces' sums in the order of the rows: the same input gives the same bits.
#pragma once
#include "../cpu/pool.h"

namespace mk::cuda {

enum class DType { float32, bfloat16, float16 };

constexpr int64_t kPieceRows = 64;

// Upper bound on the number of pieces; the position of each follows from the offsets alone.
constexpr int64_t pool_pieces(int64_t rows, int64_t segments) { return rows / kPieceRows + segments + 2; }

// Row length of piece_sums, padded for 16-byte reads.
constexpr int64_t pool_pitch(int64_t D) { return (D + 3) / 4 * 4; }

// The device's index and a cudaStream_t.
struct Target {
  int device = 0;
  void* stream = nullptr;
};

// States hidden[rows, width] in device memory, and scratch memory. hidden may be null in the backward pass unless there
// is a query or the weights need a gradient.
struct States {
  DType dtype = DType::float32;
  const void* hidden = nullptr;
  int64_t rows = 0, width = 0;
  float* piece_sums = nullptr;     // [pieces, pitch] scratch; in the backward pass only for the query's gradient
  double* piece_scales = nullptr;  // [pieces, 2] scratch of the forward pass, null without weights and query
};

// As mk::pool_forward, but units is written for all rows, with 0 outside the segments.
void pool_forward(States states, Pooling pooling, Pooled pooled, Target target);

// The results of the backward pass, null if not requested; hidden has the dtype of the states.
struct PoolGradients {
  void* hidden = nullptr;
  float* weights = nullptr;
  float* query = nullptr;
};

// As mk::pool_backward.
void pool_backward(const float* pooled_grad, Pooled pooled, States states, Pooling pooling, PoolGradients out,
                   Target target);

}  // namespace mk::cuda
