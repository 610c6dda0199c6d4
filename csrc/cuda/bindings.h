// Add the CUDA kernels to a Python module, which must also have the structs of bind_pooling_structs.
#pragma once
#include <pybind11/pybind11.h>

namespace mk::cuda {

void bind(pybind11::module_& m);

}  // namespace mk::cuda
