// The bindings of csrc/cuda/ over the emulator; included, because pybind11 takes long to compile a second time.
#include <cuda_runtime.h>

#include "cuda/bindings.cpp"

PYBIND11_MODULE(_emulated, m) {
  mk::bind_pooling_structs(m);
  mk::cuda::bind(m);
  m.def("order", [](int order) { emulate::order() = order; });
}
