// Adds the CUDA kernels to a Python module.
#pragma once
#include <pybind11/pybind11.h>

namespace mk::cuda {

void bind(pybind11::module_& m);

}  // namespace mk::cuda
