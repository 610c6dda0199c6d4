// main_kernels._C: pybind11 over plain addresses and sizes. It does not link torch, so one build serves every torch
// version; the Python side (main_kernels/backends/) sees to dtypes, shapes and contiguity.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "address.h"
#include "cpu/accumulate.h"
#include "cpu/dispatch.h"
#include "cpu/divergence.h"
#include "cpu/pool.h"
#include "cpu/sweep.h"
#ifdef MK_CUDA
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

using mk::Address;
using mk::at;

mk::Mask mask(Address rows, Address columns, bool keep_target) {
  return {at<const int32_t>(rows), at<const int32_t>(columns), keep_target};
}

template <class T>
void bind(py::module_& m, const std::string& dtype) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def(("reduce_rows_" + dtype).c_str(),
        [](Address raw, int64_t rows, int64_t M, float scale, float cap, Address bias, Address targets,
           Address row_ids, Address column_ids, bool keep_target, Address maximum, Address total, Address target,
           Address weighted, Address rank, Address logits, Address softplus, Address clipped, float clip,
           int threads) {
          mk::reduce_rows(at<const T>(raw), rows, M, {scale, cap, at<const float>(bias)}, at<const int64_t>(targets),
                          mask(row_ids, column_ids, keep_target),
                          {at<float>(maximum), at<double>(total), at<float>(target), at<double>(weighted),
                           at<float>(rank), at<double>(logits), at<double>(softplus), at<double>(clipped), clip},
                          threads);
        },
        unlocked);
  m.def(("reduce_columns_" + dtype).c_str(),
        [](Address raw, int64_t rows, int64_t M, float scale, float cap, Address bias, Address targets,
           Address row_ids, Address column_ids, bool keep_target, Address maximum, Address total, Address target,
           Address rank, Address logits, int threads) {
          mk::reduce_columns(at<const T>(raw), rows, M, {scale, cap, at<const float>(bias)},
                             at<const int64_t>(targets), mask(row_ids, column_ids, keep_target),
                             {at<float>(maximum), at<double>(total), at<const float>(target), at<float>(rank),
                              at<double>(logits)},
                             threads);
        },
        unlocked);
  m.def(("reduce_bounded_" + dtype).c_str(),
        [](Address raw, int64_t rows, int64_t M, float scale, float reference, Address targets, Address row_ids,
           Address column_ids, bool keep_target, Address row_total, Address target_score, Address col_total,
           int threads) {
          mk::reduce_bounded(at<const T>(raw), rows, M, scale, reference, at<const int64_t>(targets),
                             mask(row_ids, column_ids, keep_target), at<double>(row_total), at<float>(target_score),
                             at<double>(col_total), threads);
        },
        unlocked);
  m.def(("weigh_bounded_" + dtype).c_str(),
        [](Address raw, int64_t rows, int64_t M, float scale, float reference, Address targets, Address row_ids,
           Address column_ids, bool keep_target, Address alpha, Address beta, Address d, Address d_scale,
           int threads) {
          mk::weigh_bounded(at<T>(raw), rows, M, scale, reference, at<const int64_t>(targets),
                            mask(row_ids, column_ids, keep_target), at<const float>(alpha), at<const float>(beta),
                            at<const float>(d), at<double>(d_scale), threads);
        },
        unlocked);
  m.def(("weigh_" + dtype).c_str(),
        [](Address raw, int64_t rows, int64_t M, float scale, float cap, Address bias, Address targets,
           Address row_ids, Address column_ids, bool keep_target, Address a, Address r, Address r_low, Address b,
           Address c, Address c_low, Address d, Address e, Address u, Address v, Address h, Address d_scale,
           int threads) {
          mk::weigh(at<T>(raw), rows, M, {scale, cap, at<const float>(bias)}, at<const int64_t>(targets),
                    mask(row_ids, column_ids, keep_target),
                    {at<const float>(a), {at<const float>(r), at<const float>(r_low)}, at<const float>(b),
                     {at<const float>(c), at<const float>(c_low)}, at<const float>(d), at<const float>(e),
                     at<const float>(u), at<const float>(v), at<const float>(h)},
                    at<double>(d_scale), threads);
        },
        unlocked);
  m.def(("add_columns_" + dtype).c_str(),
        [](Address raw, int64_t rows, int64_t M, Address sums, int threads) {
          mk::add_columns(at<const T>(raw), rows, M, at<float>(sums), threads);
        },
        unlocked);
  m.def(("accumulate_" + dtype).c_str(),
        [](Address high, Address low, Address x, int64_t n, int threads) {
          mk::accumulate(at<uint16_t>(high), at<uint16_t>(low), at<const T>(x), n, threads);
        },
        unlocked);
  m.def(("pool_forward_" + dtype).c_str(),
        [](Address hidden, int64_t D, Address offsets, int64_t segments, bool last, bool normalize, Address weights,
           Address query, Address pooled, Address norms, Address units, int threads) {
          mk::pool_forward(at<const T>(hidden), D,
                           {at<const int64_t>(offsets), segments, last, normalize, at<const float>(weights),
                            at<const float>(query)},
                           at<float>(pooled), at<float>(norms), at<double>(units), threads);
        },
        unlocked);
  m.def(("pool_backward_" + dtype).c_str(),
        [](Address upstream, Address pooled, Address norms, Address units, Address hidden, int64_t rows, int64_t D,
           Address offsets, int64_t segments, bool last, bool normalize, Address weights, Address query,
           Address d_hidden, Address d_weights, Address d_queries, Address d_query, int threads) {
          mk::pool_backward(at<const float>(upstream), at<const float>(pooled), at<const float>(norms),
                            at<const double>(units), at<const T>(hidden), rows, D,
                            {at<const int64_t>(offsets), segments, last, normalize, at<const float>(weights),
                             at<const float>(query)},
                            mk::PoolGradients<T>{at<T>(d_hidden), at<float>(d_weights), at<float>(d_queries),
                                                 at<float>(d_query)},
                            threads);
        },
        unlocked);
}

template <class P, class Q>
void bind_divergence(py::module_& m, const std::string& dtypes) {
  m.def(("divergence_" + dtypes).c_str(),
        [](Address p_raw, Address q_raw, int64_t rows, int64_t M, float scale, float beta, float rest, Address weights,
           Address values, bool grad_p, bool grad_q, int threads) {
          mk::divergence(at<P>(p_raw), at<Q>(q_raw), rows, M, scale, {beta, rest}, at<const float>(weights),
                         at<float>(values), grad_p, grad_q, threads);
        },
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of main_kernels over raw addresses; call them through main_kernels, never directly.";
  bind<float>(m, "float32");
  bind<uint16_t>(m, "bfloat16");
  bind_divergence<float, float>(m, "float32_float32");
  bind_divergence<float, uint16_t>(m, "float32_bfloat16");
  bind_divergence<uint16_t, float>(m, "bfloat16_float32");
  bind_divergence<uint16_t, uint16_t>(m, "bfloat16_bfloat16");
  m.def("round_scaled",
        [](Address high, Address low, int64_t rows, int64_t D, Address scale, int64_t stride, int threads) {
          mk::round_scaled(at<uint16_t>(high), at<const uint16_t>(low), rows, D, at<const float>(scale), stride,
                           threads);
        },
        py::call_guard<py::gil_scoped_release>());
  m.def("instruction_sets", &mk::instruction_sets);
  m.def("instruction_set", &mk::instruction_set);
  m.def("set_instruction_set", &mk::set_instruction_set);
#ifdef MK_CUDA
  mk::cuda::bind(m);
#endif
}
