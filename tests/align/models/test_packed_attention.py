"""Packed attention against the model's own eager attention, one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from main_align.errors import UserError
from main_align.models import packed_attention as attention
from main_align.models.packed_attention import (
    PACKED,
    _look_for_varlen,
    packed_attention,
    packed_forward,
    packing_arguments,
    segment_arguments,
    use_packed_attention,
)
from main_align.models.packing import pack
from torch.profiler import ProfilerActivity, profile

from tests.align.tiny_models import DEVICE, cpu_only, tiny_model

pytestmark = pytest.mark.usefixtures("on_the_device")
LENGTHS = [1, 7, 40, 16, 17]  # the tiny Mistral's window is 16


def alone(model, sequences):
    model.set_attn_implementation("eager")
    return torch.cat([model.model(s[None]).last_hidden_state[0] for s in sequences])


def packed_states(model, ids, lengths):
    with packed_forward():
        return model.model(ids[None], **packing_arguments(lengths, DEVICE)).last_hidden_state[0]


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
@torch.inference_mode()
def test_packed_states_equal_each_sequence_alone(kind, heads):
    model = tiny_model(kind, num_key_value_heads=heads)
    sequences = list(torch.randint(3, 259, (sum(LENGTHS),)).split(LENGTHS))
    wanted = alone(model, sequences)
    assert use_packed_attention(model) == PACKED
    packed = packed_states(model, torch.cat(sequences), LENGTHS)
    torch.testing.assert_close(packed, wanted, rtol=0, atol=1e-5)


def sharing(stem=(20, 3)):
    """Sequences that share prefixes of several lengths, one of which is a whole sequence, and one that shares none."""
    ids = torch.randint(3, 259, (sum(stem) + 60,)).tolist()
    one, two, rest = ids[: stem[0]], ids[: sum(stem)], ids[sum(stem) :]
    return [one + rest[:30], two, two + rest[30:31], two + rest[40:57], rest[:20]]


def shared_states(model, sequences):
    packing = pack(sequences)
    assert len(packing.ids) < sum(map(len, sequences))
    ids = torch.from_numpy(packing.ids).to(DEVICE)
    with packed_forward():
        states = model.model(ids[None], **segment_arguments(packing.segments, DEVICE)).last_hidden_state[0]
    return torch.cat([states[torch.from_numpy(rows).to(DEVICE)] for rows in packing.rows])


@pytest.mark.parametrize("block", [8, 512])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
@torch.inference_mode()
def test_states_behind_a_shared_prefix_equal_each_sequence_alone(kind, block, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    model = tiny_model(kind)
    sequences = sharing()
    wanted = alone(model, list(map(torch.tensor, sequences)))
    use_packed_attention(model)
    torch.testing.assert_close(shared_states(model, sequences), wanted, rtol=0, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="flash attention of 16-bit states needs a CUDA device")
@pytest.mark.parametrize("kind", ["llama", "mistral"])
@torch.inference_mode()
def test_states_in_16_bits_behind_a_shared_prefix_equal_each_sequence_alone(kind):
    model = tiny_model(kind).bfloat16()
    sequences = sharing()
    wanted = alone(model, list(map(torch.tensor, sequences)))
    if use_packed_attention(model) != PACKED:
        pytest.skip("flash-attn is installed, with which prefixes are not shared")
    torch.testing.assert_close(shared_states(model, sequences).float(), wanted.float(), rtol=0, atol=0.1)


@pytest.mark.skipif(DEVICE == "cpu", reason="flash attention of 16-bit states needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
@torch.inference_mode()
def test_packed_states_in_16_bits_equal_each_sequence_alone(kind, autocast):
    sequences = list(torch.randint(3, 259, (sum(LENGTHS),)).split(LENGTHS))
    model = tiny_model(kind) if autocast else tiny_model(kind).bfloat16()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        wanted = alone(model, sequences)
        use_packed_attention(model)
        packed = packed_states(model, torch.cat(sequences), LENGTHS)
    torch.testing.assert_close(packed.float(), wanted.float(), rtol=0, atol=0.1)


def test_enable_gqa_is_passed_only_to_kernels_that_take_it(monkeypatch):
    """Torch 2.11 knows no enable_gqa, later ones want it; 2.10 has no windows."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    for kernel, told in (
        (lambda *, is_causal=False: {}, None),
        (lambda *, window_size: {}, False),
        (lambda *, window_size, enable_gqa=False: {}, True),
    ):
        monkeypatch.setattr(varlen, "varlen_attn", kernel)
        assert _look_for_varlen.__wrapped__() is told


@torch.inference_mode()
def test_the_window_changes_what_a_long_segment_sees():
    ids = torch.randint(3, 259, (40,))
    states = []
    for window in (16, 4096):
        model = tiny_model("mistral", sliding_window=window)
        use_packed_attention(model)
        states.append(packed_states(model, ids, [40]))
    torch.testing.assert_close(states[0][:16], states[1][:16], rtol=0, atol=1e-5)
    assert (states[0][16:] - states[1][16:]).abs().max() > 1e-2


@torch.inference_mode()
def test_a_segment_does_not_see_its_neighbours():
    model = tiny_model("llama")
    use_packed_attention(model)
    ids = torch.randint(3, 259, (18,))
    other = ids.clone()
    other[:5], other[14:] = 7, 9
    first, second = (packed_states(model, i, [5, 9, 4])[5:14] for i in (ids, other))
    assert torch.equal(first, second)


@cpu_only("a GPU has an attention for all segments at once")
def test_the_backward_of_attention_is_linear_in_the_number_of_segments():
    """The gradient of a slice is as long as the whole row; there is none for each segment."""

    def bytes_of_backward(segments: int) -> int:
        query, key, value = (torch.randn(1, heads, 8 * segments, 4, requires_grad=True) for heads in (4, 2, 2))
        bounds = torch.arange(0, 8 * segments + 1, 8, dtype=torch.int32)
        lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 8, "max_length_k": 8}
        out, _ = packed_attention(torch.nn.Identity(), query, key, value, None, **lengths)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            out.sum().backward()
        return sum(max(0, event.self_cpu_memory_usage) for event in profiled.events())

    assert bytes_of_backward(32) < 5 * bytes_of_backward(8)


@cpu_only("a GPU's attention in bfloat16 is faster")
@pytest.mark.parametrize("autocast", [False, True])
def test_short_segments_in_bfloat16_are_trained_in_float32(autocast, monkeypatch):
    seen = []

    def recorded(query, *arguments, **options):
        seen.append((query.shape[2], query.dtype))
        assert not torch.is_autocast_enabled("cpu") or query.dtype != torch.float32
        return attended(query, *arguments, **options)

    attended = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", recorded)
    lengths = [5, attention.SHORT + 1]
    heads = torch.randn(3, 1, 4, sum(lengths), 8)
    arguments = {k: v for k, v in packing_arguments(lengths, "cpu").items() if k.startswith(("cu_", "max_"))}
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        q, k, v = (side.to(dtype).requires_grad_() for side in heads.bfloat16())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.bfloat16):
            result, _ = packed_attention(torch.nn.Module(), q, k, v, None, **arguments)
        assert result.dtype == dtype
        gradients.append(torch.autograd.grad(result.double().square().sum(), (q, k, v)))
    assert seen[2:] == [(5, torch.float32), (attention.SHORT + 1, torch.bfloat16)]
    for exact, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=2e-2 * float(exact.abs().max()))
    with torch.no_grad():
        packed_attention(torch.nn.Module(), *heads.bfloat16(), None, **arguments)
    assert {dtype for _, dtype in seen[4:]} == {torch.bfloat16}


def test_positions_restart():
    packing = packing_arguments([2, 3], "cpu")
    assert packing["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert packing["cu_seq_lens_q"].tolist() == [0, 2, 5]
    assert packing["max_length_q"] == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"softcap": 30.0}, "softcap, .* such as LLaMA"),
        ({"dropout": 0.1}, r"dropout, .* load the model with attention_dropout=0\.0"),
        ({"s_aux": torch.zeros(4)}, "s_aux, .* such as LLaMA"),
    ],
)
def test_unsupported_attention_is_refused(asked, message):
    states = torch.randn(1, 4, 5, 8)
    packing = {"cu_seq_lens_q": torch.tensor([0, 5]), "max_length_q": 5}
    with pytest.raises(UserError, match=message):
        packed_attention(torch.nn.Identity(), states, states, states, None, **packing, **asked)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@torch.inference_mode()
def test_without_boundaries_attention_is_the_models_own(kind):
    """A model that is being trained still generates, from padded prompts too."""
    model = tiny_model(kind)
    ids = torch.randint(3, 259, (2, 20))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    logits, texts = [], []
    for switch in (lambda m: m.set_attn_implementation("sdpa"), use_packed_attention):
        switch(model)
        logits.append(model(ids, attention_mask=mask).logits[mask.bool()])
        texts.append(model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0))
    assert torch.equal(*logits)
    assert torch.equal(*texts)


@torch.inference_mode()
def test_packed_positions_without_boundaries_are_kept_apart():
    model = tiny_model("llama")
    ids = torch.randint(3, 259, (9,))
    wanted = alone(model, [ids[:4], ids[4:]])
    use_packed_attention(model)
    positions = packing_arguments([4, 5], DEVICE)["position_ids"]
    states = model.model(ids[None], position_ids=positions, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(states, wanted, rtol=0, atol=1e-5)
