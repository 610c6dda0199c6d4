// main_kernels._C: pybind11 over structs of plain addresses and sizes. It does not link torch, so one build works with
// every torch version. The Python side (main_kernels/backends/) checks dtypes, shapes and contiguity.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/dispatch.h"
#include "cpu/divergence.h"
#include "cpu/huge_pages.h"
#include "cpu/layers.h"
#include "cpu/pool.h"
#include "cpu/reductions.h"
#include "cpu/row_loss.h"
#include "cpu/score_grad.h"
#include "cpu/single_exp.h"
#include "cpu/split_float32.h"
#include "structs.h"
#ifdef MK_CUDA
#include "cuda/bindings.h"
#endif

namespace mk {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

void bind_structs(py::module_& m) {
  StructBinding<Mask>(m, "Mask")
      .field("rows", &Mask::rows)
      .field("columns", &Mask::columns)
      .field("keep_target", &Mask::keep_target);
  StructBinding<ScoreMap>(m, "ScoreMap")
      .field("scale", &ScoreMap::scale)
      .field("cap", &ScoreMap::cap)
      .field("bias", &ScoreMap::bias)
      .field("is_uniform", &ScoreMap::is_uniform);
  StructBinding<Lse>(m, "Lse").field("high", &Lse::high).field("low", &Lse::low);
  StructBinding<RowAccumulators>(m, "RowAccumulators")
      .field("maximum", &RowAccumulators::maximum)
      .field("total", &RowAccumulators::total)
      .field("target", &RowAccumulators::target)
      .field("weighted", &RowAccumulators::weighted)
      .field("rank", &RowAccumulators::rank)
      .field("logits", &RowAccumulators::logits)
      .field("softplus", &RowAccumulators::softplus)
      .field("sigmoid", &RowAccumulators::sigmoid)
      .field("clipped", &RowAccumulators::clipped)
      .field("clip", &RowAccumulators::clip);
  StructBinding<ColumnAccumulators>(m, "ColumnAccumulators")
      .field("maximum", &ColumnAccumulators::maximum)
      .field("total", &ColumnAccumulators::total)
      .field("target", &ColumnAccumulators::target)
      .field("rank", &ColumnAccumulators::rank)
      .field("logits", &ColumnAccumulators::logits);
  StructBinding<ScoreGradTerms>(m, "ScoreGradTerms")
      .field("row_lse_grad", &ScoreGradTerms::row_lse_grad)
      .field("row_lse", &ScoreGradTerms::row_lse)
      .field("column_lse_grad", &ScoreGradTerms::column_lse_grad)
      .field("column_lse", &ScoreGradTerms::column_lse)
      .field("target_grad", &ScoreGradTerms::target_grad)
      .field("softplus_grad", &ScoreGradTerms::softplus_grad)
      .field("row_sum_grad", &ScoreGradTerms::row_sum_grad)
      .field("column_sum_grad", &ScoreGradTerms::column_sum_grad)
      .field("neg_entropy_grad", &ScoreGradTerms::neg_entropy_grad);
  StructBinding<RowLossSums>(m, "RowLossSums")
      .field("lse_high", &RowLossSums::lse_high)
      .field("lse_low", &RowLossSums::lse_low)
      .field("target", &RowLossSums::target)
      .field("logits", &RowLossSums::logits);
  StructBinding<RowLossTerms>(m, "RowLossTerms")
      .field("row_lse_grad", &RowLossTerms::row_lse_grad)
      .field("row_lse_slope", &RowLossTerms::row_lse_slope)
      .field("target_grad", &RowLossTerms::target_grad)
      .field("row_sum_grad", &RowLossTerms::row_sum_grad);
  StructBinding<SingleExpSums>(m, "SingleExpSums")
      .field("scale", &SingleExpSums::scale)
      .field("row_total", &SingleExpSums::row_total)
      .field("target_score", &SingleExpSums::target_score)
      .field("column_total", &SingleExpSums::column_total)
      .field("row_rank", &SingleExpSums::row_rank)
      .field("column_rank", &SingleExpSums::column_rank)
      .field("column_target", &SingleExpSums::column_target)
      .field("row_logits", &SingleExpSums::row_logits)
      .field("column_logits", &SingleExpSums::column_logits);
  StructBinding<SingleExpTerms>(m, "SingleExpTerms")
      .field("scale", &SingleExpTerms::scale)
      .field("row_factor", &SingleExpTerms::row_factor)
      .field("column_factor", &SingleExpTerms::column_factor)
      .field("row_sum_grad", &SingleExpTerms::row_sum_grad)
      .field("column_sum_grad", &SingleExpTerms::column_sum_grad)
      .field("target_grad", &SingleExpTerms::target_grad)
      .field("scale_grad", &SingleExpTerms::scale_grad);
  StructBinding<SplitFloat32>(m, "SplitFloat32")
      .field("high", &SplitFloat32::high)
      .field("low", &SplitFloat32::low)
      .field("rows", &SplitFloat32::rows)
      .field("columns", &SplitFloat32::columns);
  StructBinding<Mixture>(m, "Mixture").field("beta", &Mixture::beta).field("rest", &Mixture::rest);
  bind_pooling_structs(m);
}

// The structs that contain elements of type T have its dtype in their Python name; the functions are overloads.
template <class T>
void bind_kernels(py::module_& m, const std::string& dtype) {
  StructBinding<Chunk<T>>(m, ("Chunk_" + dtype).c_str())
      .field("raw", &Chunk<T>::raw)
      .field("rows", &Chunk<T>::rows)
      .field("columns", &Chunk<T>::columns)
      .field("targets", &Chunk<T>::targets)
      .field("mask", &Chunk<T>::mask);
  StructBinding<States<T>>(m, ("States_" + dtype).c_str())
      .field("hidden", &States<T>::hidden)
      .field("rows", &States<T>::rows)
      .field("width", &States<T>::width);
  StructBinding<PoolGradients<T>>(m, ("PoolGradients_" + dtype).c_str())
      .field("hidden", &PoolGradients<T>::hidden)
      .field("weights", &PoolGradients<T>::weights)
      .field("queries", &PoolGradients<T>::queries)
      .field("query", &PoolGradients<T>::query);
  StructBinding<RmsNorm<T>>(m, ("RmsNorm_" + dtype).c_str())
      .field("x", &RmsNorm<T>::x)
      .field("weight", &RmsNorm<T>::weight)
      .field("epsilon", &RmsNorm<T>::epsilon)
      .field("out", &RmsNorm<T>::out)
      .field("out_grad", &RmsNorm<T>::out_grad)
      .field("x_grad", &RmsNorm<T>::x_grad)
      .field("weight_grad", &RmsNorm<T>::weight_grad);
  m.def("rms_norm", &rms_norm<T>, Unlocked());
  m.def("rms_norm_grad", &rms_norm_grad<T>, Unlocked());
  StructBinding<SiluMul<T>>(m, ("SiluMul_" + dtype).c_str())
      .field("gate", &SiluMul<T>::gate)
      .field("up", &SiluMul<T>::up)
      .field("out", &SiluMul<T>::out)
      .field("out_grad", &SiluMul<T>::out_grad)
      .field("gate_grad", &SiluMul<T>::gate_grad)
      .field("up_grad", &SiluMul<T>::up_grad)
      .field("rows", &SiluMul<T>::rows)
      .field("width", &SiluMul<T>::width);
  m.def("silu_mul", &silu_mul<T>, Unlocked());
  m.def("silu_mul_grad", &silu_mul_grad<T>, Unlocked());
  m.def("reduce_rows", &reduce_rows<T>, Unlocked());
  m.def("reduce_columns", &reduce_columns<T>, Unlocked());
  m.def("row_loss", &row_loss<T>, Unlocked());
  m.def("largest_norm", &largest_norm<T>, Unlocked());
  m.def("single_exp_reduce", &single_exp_reduce<T>, Unlocked());
  m.def("single_exp_score_grad", &single_exp_score_grad<T>, Unlocked());
  m.def("score_grad",
        [](Chunk<T> chunk, ScoreMap map, ScoreGradTerms terms, Address scale_grad, int threads) {
          score_grad(chunk, map, terms, at<double>(scale_grad), threads);
        },
        Unlocked());
  m.def("add_columns",
        [](Chunk<T> chunk, Address sums, int threads) { add_columns(chunk, at<float>(sums), threads); }, Unlocked());
  m.def(("accumulate_" + dtype).c_str(),
        [](SplitFloat32 sum, Address x, int threads) { accumulate(sum, at<const T>(x), threads); }, Unlocked());
  m.def("pool_forward", &pool_forward<T>, Unlocked());
  m.def("pool_backward",
        [](Address pooled_grad, Pooled pooled, States<T> states, Pooling pooling, PoolGradients<T> out, int threads) {
          pool_backward(at<const float>(pooled_grad), pooled, states, pooling, out, threads);
        },
        Unlocked());
}

template <class P, class Q>
void bind_divergence(py::module_& m, const std::string& dtypes) {
  using Pair = ScorePair<P, Q>;
  StructBinding<Pair>(m, ("ScorePair_" + dtypes).c_str())
      .field("p_raw", &Pair::p_raw)
      .field("q_raw", &Pair::q_raw)
      .field("rows", &Pair::rows)
      .field("columns", &Pair::columns)
      .field("scale", &Pair::scale)
      .field("mixture", &Pair::mixture)
      .field("weights", &Pair::weights)
      .field("values", &Pair::values)
      .field("grad_p", &Pair::grad_p)
      .field("grad_q", &Pair::grad_q);
  m.def("divergence", &divergence<P, Q>, Unlocked());
}

template <class T, class A>
void bind_rotary(py::module_& m, const std::string& dtypes) {
  using Heads = Rotary<T, A>;
  StructBinding<Heads>(m, ("Rotary_" + dtypes).c_str())
      .field("x", &Heads::x)
      .field("cosines", &Heads::cosines)
      .field("sines", &Heads::sines)
      .field("out", &Heads::out)
      .field("out_grad", &Heads::out_grad)
      .field("x_grad", &Heads::x_grad)
      .field("rows", &Heads::rows)
      .field("heads", &Heads::heads)
      .field("width", &Heads::width);
  m.def("rotate", &rotate<T, A>, Unlocked());
  m.def("rotate_grad", &rotate_grad<T, A>, Unlocked());
}

}  // namespace
}  // namespace mk

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of main_kernels over raw addresses. Use main_kernels instead of calling them directly.";
  mk::bind_structs(m);
  mk::bind_kernels<float>(m, "float32");
  mk::bind_kernels<uint16_t>(m, "bfloat16");
  mk::bind_divergence<float, float>(m, "float32_float32");
  mk::bind_divergence<float, uint16_t>(m, "float32_bfloat16");
  mk::bind_divergence<uint16_t, float>(m, "bfloat16_float32");
  mk::bind_divergence<uint16_t, uint16_t>(m, "bfloat16_bfloat16");
  mk::bind_rotary<float, float>(m, "float32_float32");
  mk::bind_rotary<uint16_t, uint16_t>(m, "bfloat16_bfloat16");
  mk::bind_rotary<uint16_t, float>(m, "bfloat16_float32");
  m.def("round_scaled",
        [](mk::SplitFloat32 sum, mk::Address scale, int64_t stride, int threads) {
          mk::round_scaled(sum, mk::at<const float>(scale), stride, threads);
        },
        mk::Unlocked());
  m.def("advise_huge_pages", [](mk::Address begin, size_t bytes) { mk::advise_huge_pages(mk::at<void>(begin), bytes); });
  m.def("instruction_sets", &mk::instruction_sets);
  m.def("instruction_set", &mk::instruction_set);
  m.def("set_instruction_set", &mk::set_instruction_set);
#ifdef MK_CUDA
  mk::cuda::bind(m);
#endif
}
