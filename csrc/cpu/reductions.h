// Reductions of a chunk of scores along its rows and along its columns.
#pragma once
#include "scores.h"

namespace mk {

// Running row reductions, one entry per row; all except target are null if not requested. total is the sum of
// e^(s - maximum), weighted of e^(s - maximum) (s - maximum), clipped of e^(clamp(s) - clamp(maximum)), clamped to
// +-clip. rank counts the scores above the target's; it is valid only if the chunk holds whole rows. weighted and
// clipped need total, sigmoid needs softplus, whose derivative it is.
struct RowAccumulators {
  float* maximum = nullptr;
  double* total = nullptr;
  float* target = nullptr;
  double* weighted = nullptr;
  float* rank = nullptr;
  double* logits = nullptr;
  double* softplus = nullptr;
  double* sigmoid = nullptr;
  double* clipped = nullptr;
  float clip = 0;
};

// Running column reductions, one entry per column. rank counts the rows above target[j] in column j, except the row
// whose target it is; logits is the sum of the scores. target, rank and logits may be null.
struct ColumnAccumulators {
  float* maximum = nullptr;
  double* total = nullptr;
  const float* target = nullptr;
  float* rank = nullptr;
  double* logits = nullptr;
};

// Add a chunk to the accumulators of its rows.
template <class T>
void reduce_rows(Chunk<T> chunk, ScoreMap map, RowAccumulators sums, int threads);

// Add a chunk to the column accumulators.
template <class T>
void reduce_columns(Chunk<T> chunk, ScoreMap map, ColumnAccumulators sums, int threads);

// sums[columns] += the column sums of a chunk.
template <class T>
void add_columns(Chunk<T> chunk, float* sums, int threads);

}  // namespace mk
