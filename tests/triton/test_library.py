"""The library's own tests of every op, once more, on the Triton backend: chunk kernels over torch's products."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from main_kernels import linear_cross_entropy
from main_kernels.backends.triton import configs
from main_kernels.sweep import plan

from ..kernels import (
    divergences,
    test_contrastive,
    test_grad_buffer,
    test_head_losses,
    test_information,
    test_linear_kl,
    test_ops,
)
from ..kernels import test_token_logprobs as test_likelihood
from ..kernels.contract import Matrices

CHOSEN = {
    test_likelihood: "matches_the_reference huge_logits_match_the_reference statistics_match_the_reference "
    "non_finite_operands_give_nan a_fully_masked_input_gives_zero_in_the_graph",
    test_contrastive: "info_nce_matches_the_reference info_nce_with_options_matches_the_reference "
    "sigmoid_loss_matches_the_reference sigmoid_loss_of_a_confident_model_is_not_rounded_away one_pair_has_no_loss "
    "a_batch_of_duplicates_has_no_negatives distinct_ids_do_not_change_a_bit pair_scores_match_the_reference "
    "ranks_over_several_chunks_match_the_reference perfect_pairs_rank_first_and_reach_log_n "
    "row_logsumexp_matches_the_reference non_finite_operands_give_nan "
    "the_chunk_size_does_not_change_the_columns",
    test_head_losses: "linear_cross_entropy_matches_the_reference gradients_are_exact_for_every_subset_of_arguments "
    "a_fused_loss_does_not_change_the_other_outputs",
    test_information: "matches_the_reference huge_scores_match_the_reference non_finite_operands_give_nan",
    test_linear_kl: "matches_the_reference huge_logits_match_the_reference equal_models_have_zero_divergence "
    "flat_peaked_and_rising_rows_match_the_reference small_divergences_are_not_lost "
    "two_outcomes_match_a_hand_calculation "
    "every_beta_matches_the_reference non_finite_operands_give_nan",
    test_grad_buffer: "sums_equal_those_in_float32 scaling_rows_keeps_non_finite_values",
}
for _module, _names in CHOSEN.items():
    for _name in _names.split():
        globals()[f"test_{_name}_of_{_module.__name__.rpartition('.test_')[2]}"] = getattr(_module, f"test_{_name}")


@pytest.mark.parametrize(
    ("dtype", "workspace_bytes"), [(torch.float32, 1 << 28), (torch.bfloat16, 0), (torch.bfloat16, 1 << 28)]
)
def test_several_chunks_match_the_reference(backend, dtype, workspace_bytes, monkeypatch):
    """Large enough for bfloat16 products, cut into chunks, with ragged tiles in both directions."""
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    drawn = Matrices(700, 700, 64, dtype, 0.3, False, 5)
    test_contrastive.check(
        drawn, temperature=0.5, workspace_bytes=workspace_bytes, ids=True, label_smoothing=0.1, extra="shared"
    )
    test_likelihood.check(Matrices(530, 1500, 48, dtype, 0.6, False, 5), bias_spread=0.5)


@pytest.mark.parametrize("frozen", [(), divergences.NAMES[:2], divergences.NAMES[2:]])
@pytest.mark.parametrize("options", divergences.OPTIONS)
def test_rows_of_several_blocks_match_the_reference(backend, options, frozen, monkeypatch):
    """The largest score may lie anywhere in a row; which passes a gradient takes depends on who is trained."""
    monkeypatch.setattr(configs, "DIVERGENCE", replace(configs.DIVERGENCE, BLOCK_M=4, BLOCK_N=64))
    drawn = Matrices(9, 300, 24, torch.float32, 1.0, False, 5)
    divergences.check(*divergences.draw(drawn, torch.float32, 16), frozen=frozen, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_backward_of_a_head_gives_the_same_bits(backend, dtype):
    """The first uses the gradient that row_loss made; the second recomputes it by score_grad from the same sums."""
    hidden, weight = ((torch.randn(n, 24) * 2).to(dtype).requires_grad_() for n in (70, 1100))
    targets = torch.randint(0, 1100, (70,))
    loss = linear_cross_entropy(hidden, weight, targets, label_smoothing=0.1, z_loss=1e-3, softcap=20.0)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, (hidden, weight)), strict=True))


def test_compiles_with_fullgraph(backend):
    test_ops.test_compiles_with_fullgraph(backend, "info_nce_ids")
