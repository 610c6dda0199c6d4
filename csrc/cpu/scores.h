// A chunk of raw scores as torch.mm computed it, and the structs that describe what happens to it.
#pragma once
#include <cstdint>

namespace mk {

// Masked entries: those of row i and column j with rows[i] == columns[j]; none if rows is null. With keep_target the
// row's target stays unmasked; without it, the target is masked as well.
struct Mask {
  const int32_t* rows = nullptr;
  const int32_t* columns = nullptr;
  bool keep_target = true;

  bool any() const { return rows || !keep_target; }
  int32_t id(int64_t i) const { return rows ? rows[i] : 0; }
  const int32_t* columns_from(int64_t j0) const { return rows ? columns + j0 : nullptr; }
};

// raw[rows, columns], contiguous. targets[i] (null: none) counts from the chunk's first column and may lie outside it.
template <class T>
struct Chunk {
  T* raw = nullptr;
  int64_t rows = 0, columns = 0;
  const int64_t* targets = nullptr;
  Mask mask;

  T* row(int64_t i) const { return raw + i * columns; }
  int64_t target(int64_t i) const { return targets ? targets[i] : -1; }
};

// The map from raw products to scores: s = scale * cap * tanh((raw + bias) / cap); cap 0: s = scale * (raw + bias).
struct ScoreMap {
  float scale = 1;
  float cap = 0;
  const float* bias = nullptr;  // [columns]; -inf excludes its column
  bool is_uniform = false;      // all columns share a bias
};

// A log-sum-exp as the unevaluated sum of two floats: at logits of 1e4 one float32 is only accurate to 1e-3, and
// exp(s - lse) would inherit that error.
struct Lse {
  const float* high = nullptr;
  const float* low = nullptr;
};

}  // namespace mk
