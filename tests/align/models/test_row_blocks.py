"""MLPs in blocks of rows: the same states and parameters, and the model's own forward wherever there are gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from main_align.models import row_blocks
from main_align.models.row_blocks import BLOCKS, run_mlps_in_blocks
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.align.tiny_models import cpu_only, tiny_model

pytestmark = cpu_only("on another device the MLPs stay as they are")
IDS = torch.arange(3, 43)[None]


def rows_of_each_call(model):
    """Register a hook on the first MLP and return the list that it fills."""
    seen = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0][0]))
    )
    return seen


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_states_of_blocks_equal_those_of_the_whole(kind, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_ROWS", 16)
    model = tiny_model(kind)
    names = list(model.state_dict())
    with torch.inference_mode():
        whole = model.model(IDS).last_hidden_state
        run_mlps_in_blocks(model)
        run_mlps_in_blocks(model)  # once more changes nothing
        seen = rows_of_each_call(model)
        torch.testing.assert_close(model.model(IDS).last_hidden_state, whole, rtol=0, atol=1e-5)
    assert seen == [14, 14, 12]
    assert list(model.state_dict()) == list(copy.deepcopy(model).state_dict()) == names


def test_a_forward_with_gradients_takes_all_rows_at_once(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_ROWS", 16)
    model = tiny_model("llama")
    run_mlps_in_blocks(model)
    seen = rows_of_each_call(model)
    model.model(IDS).last_hidden_state.sum().backward()
    assert seen == [40]


def test_mlps_of_other_families_keep_their_class():
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1))
    kinds = [type(module) for module in model.modules()]
    run_mlps_in_blocks(model)
    assert [type(module) for module in model.modules()] == kinds
    assert not any(kind in BLOCKS.values() for kind in kinds)
