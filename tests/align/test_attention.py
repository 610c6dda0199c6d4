"""Packed attention against the model's own eager attention, one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from main_align.attention import PACKED, packed_attention, packing_arguments, use_packed_attention
from main_align.errors import UserError
from tiny import tiny_model

LENGTHS = [1, 7, 40, 16, 17]  # the tiny Mistral's window is 16


def alone(model, sequences):
    model.set_attn_implementation("eager")
    return torch.cat([model.model(s[None]).last_hidden_state[0] for s in sequences])


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
@torch.inference_mode()
def test_packed_states_equal_each_sequence_alone(kind, heads):
    model = tiny_model(kind, num_key_value_heads=heads)
    sequences = list(torch.randint(3, 259, (sum(LENGTHS),)).split(LENGTHS))
    wanted = alone(model, sequences)
    assert use_packed_attention(model) == PACKED
    packing = packing_arguments(LENGTHS, "cpu")
    packed = model.model(torch.cat(sequences)[None], **packing).last_hidden_state[0]
    torch.testing.assert_close(packed, wanted, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_the_window_changes_what_a_long_segment_sees():
    ids = torch.randint(3, 259, (40,))[None]
    states = []
    for window in (16, 4096):
        model = tiny_model("mistral", sliding_window=window)
        use_packed_attention(model)
        states.append(model.model(ids, **packing_arguments([40], "cpu")).last_hidden_state[0])
    torch.testing.assert_close(states[0][:16], states[1][:16], rtol=0, atol=1e-5)
    assert (states[0][16:] - states[1][16:]).abs().max() > 1e-2


@torch.inference_mode()
def test_a_segment_does_not_see_its_neighbours():
    model = tiny_model("llama")
    use_packed_attention(model)
    packing = packing_arguments([5, 9, 4], "cpu")
    ids = torch.randint(3, 259, (18,))
    other = ids.clone()
    other[:5], other[14:] = 7, 9
    first, second = (model.model(i[None], **packing).last_hidden_state[0, 5:14] for i in (ids, other))
    assert torch.equal(first, second)


def test_positions_restart():
    packing = packing_arguments([2, 3], "cpu")
    assert packing["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert packing["cu_seq_lens_q"].tolist() == [0, 2, 5]
    assert packing["max_length_q"] == 3


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"dropout": 0.1}, {"s_aux": torch.zeros(4)}])
def test_unsupported_attention_is_refused(asked):
    states = torch.randn(1, 4, 5, 8)
    packing = {"cu_seq_lens_q": torch.tensor([0, 5]), "max_length_q": 5}
    with pytest.raises(UserError, match=next(iter(asked))):
        packed_attention(torch.nn.Identity(), states, states, states, None, **packing, **asked)


def test_missing_boundaries_are_an_error():
    model = tiny_model("llama")
    use_packed_attention(model)
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model.model(torch.tensor([[3, 4]]))
