// The CUDA kernels as main_kernels/backends/cuda.py calls them. Nothing here needs a driver until a kernel is launched.
#include "bindings.h"

#include <string>

#include "../address.h"
#include "device.h"
#include "pool.h"

namespace py = pybind11;

namespace mk::cuda {
namespace {

void bind_pool(py::module_& m, const std::string& dtype, Kind kind) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def(("cuda_pool_forward_" + dtype).c_str(),
        [kind](Address hidden, int64_t rows, int64_t D, Address offsets, int64_t segments, bool last, bool normalize,
               Address weights, Address query, Address piece_sums, Address piece_scales, Address pooled, Address norms,
               Address units, int device, Address stream) {
          pool_forward(at<const void>(hidden),
                       {kind, rows, D,
                        {at<const int64_t>(offsets), segments, last, normalize, at<const float>(weights),
                         at<const float>(query)},
                        at<float>(piece_sums)},
                       at<double>(piece_scales), at<float>(pooled), at<float>(norms), at<double>(units),
                       {device, at<void>(stream)});
        },
        unlocked);
  m.def(("cuda_pool_backward_" + dtype).c_str(),
        [kind](Address upstream, Address pooled, Address norms, Address units, Address hidden, int64_t rows, int64_t D,
               Address offsets, int64_t segments, bool last, bool normalize, Address weights, Address query,
               Address piece_sums, Address d_hidden, Address d_weights, Address d_query, int device, Address stream) {
          pool_backward(at<const float>(upstream), at<const float>(pooled), at<const float>(norms),
                        at<const double>(units), at<const void>(hidden),
                        {kind, rows, D,
                         {at<const int64_t>(offsets), segments, last, normalize, at<const float>(weights),
                          at<const float>(query)},
                         at<float>(piece_sums)},
                        at<void>(d_hidden), at<float>(d_weights), at<float>(d_query), {device, at<void>(stream)});
        },
        unlocked);
}

}  // namespace

void bind(py::module_& m) {
  bind_pool(m, "float32", Kind::float32);
  bind_pool(m, "bfloat16", Kind::bfloat16);
  bind_pool(m, "float16", Kind::float16);
  m.def("cuda_why_not", &why_not);
  m.def("cuda_pool_pieces", &pool_pieces);
  m.def("cuda_pool_pitch", &pool_pitch);
}

}  // namespace mk::cuda
