// The CUDA kernels for main_kernels/backends/cuda.py. Nothing here needs a driver until a kernel is launched.
#include "bindings.h"

#include "../structs.h"
#include "device.h"
#include "pool.h"

namespace mk::cuda {

void bind(py::module_& m) {
  py::enum_<DType>(m, "CudaDType", py::module_local())
      .value("float32", DType::float32)
      .value("bfloat16", DType::bfloat16)
      .value("float16", DType::float16);
  StructBinding<Target>(m, "CudaTarget").field("device", &Target::device).field("stream", &Target::stream);
  StructBinding<States>(m, "CudaStates")
      .field("dtype", &States::dtype)
      .field("hidden", &States::hidden)
      .field("rows", &States::rows)
      .field("width", &States::width)
      .field("piece_sums", &States::piece_sums)
      .field("piece_scales", &States::piece_scales);
  StructBinding<PoolGradients>(m, "CudaPoolGradients")
      .field("hidden", &PoolGradients::hidden)
      .field("weights", &PoolGradients::weights)
      .field("query", &PoolGradients::query);
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("cuda_pool_forward", &pool_forward, unlocked);
  m.def("cuda_pool_backward",
        [](Address pooled_grad, Pooled pooled, States states, Pooling pooling, PoolGradients out, Target target) {
          pool_backward(at<const float>(pooled_grad), pooled, states, pooling, out, target);
        },
        unlocked);
  m.def("cuda_why_not", &why_not);
  m.def("cuda_pool_pieces", &pool_pieces);
  m.def("cuda_pool_pitch", &pool_pitch);
}

}  // namespace mk::cuda
