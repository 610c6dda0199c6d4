// The bindings of csrc/cuda/ over the emulator.
#include <cuda_runtime.h>

#include "cuda/bindings.h"
#include "structs.h"

PYBIND11_MODULE(_emulated, m) {
  mk::bind_pooling_structs(m);
  mk::cuda::bind(m);
  m.def("order", [](int order) { emulate::order() = order; });
}
