"""CPU layers: the same states, gradients and parameters as the model's own."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from main_align.models import cpu_layers
from main_align.models.cpu_layers import CPU_LAYERS, use_cpu_layers
from main_align.models.packed_attention import packed_forward, packing_arguments, use_packed_attention
from transformers import Qwen2Config, Qwen2ForCausalLM

from main_kernels.backends import cpu
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


@pytest.mark.parametrize(("block", "sizes"), [(15, [14, 14, 12]), (16, [20, 20]), (27, [40]), (80, [40])])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_states_of_blocks_equal_those_of_the_whole(kind, block, sizes, monkeypatch):
    monkeypatch.setattr(cpu_layers, "BLOCK_ROWS", block)
    model = tiny_model(kind)
    names = list(model.state_dict())
    with torch.inference_mode():
        whole = model.model(IDS).last_hidden_state
        use_cpu_layers(model)
        use_cpu_layers(model)  # once more changes nothing
        seen = rows_of_each_call(model)
        torch.testing.assert_close(model.model(IDS).last_hidden_state, whole, rtol=0, atol=1e-5)
    assert seen == sizes
    assert list(model.state_dict()) == list(copy.deepcopy(model).state_dict()) == names


def test_a_forward_with_gradients_takes_all_rows_at_once(monkeypatch):
    monkeypatch.setattr(cpu_layers, "BLOCK_ROWS", 16)
    model = tiny_model("llama")
    use_cpu_layers(model)
    seen = rows_of_each_call(model)
    model.model(IDS).last_hidden_state.sum().backward()
    assert seen == [40]


@pytest.fixture
def calls(monkeypatch):
    """The kernels that ran, by name."""
    if cpu.MODULE is None:
        pytest.skip("the C++ kernels are not built")
    seen = []

    def counted(name, kernel, *arguments):
        seen.append(name)
        return kernel(*arguments)

    for name in ("rms_norm", "rotary", "silu_mul"):
        monkeypatch.setattr(cpu_layers, name, partial(counted, name, getattr(cpu_layers, name)))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_packed_row_has_the_same_states(kind, dtype, calls):
    model = tiny_model(kind).to(dtype)
    use_packed_attention(model)
    arguments = packing_arguments([7, 30, 3], "cpu")
    with torch.inference_mode(), packed_forward():
        own = model.model(IDS, **arguments).last_hidden_state
        assert not calls
        use_cpu_layers(model)
        ours = model.model(IDS, **arguments).last_hidden_state
    layers = model.config.num_hidden_layers
    assert [calls.count(name) for name in ("rms_norm", "rotary", "silu_mul")] == [2 * layers + 1, 2 * layers, layers]
    atol = 1e-5 if dtype == torch.float32 else 0  # bfloat16 is rounded at the same places
    torch.testing.assert_close(ours, own, rtol=0, atol=atol)


def gradients_of(model, **arguments):
    model.zero_grad()
    states = model.model(IDS, **arguments).last_hidden_state.float()
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return {name: parameter.grad for name, parameter in model.model.named_parameters()}


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_packed_row_has_the_same_gradients(kind, calls):
    model = tiny_model(kind).train()
    use_packed_attention(model)
    arguments = packing_arguments([7, 30, 3], "cpu")
    with packed_forward():
        exact = gradients_of(model, **arguments)
        with torch.autocast("cpu", torch.bfloat16):
            own = gradients_of(model, **arguments)
        use_cpu_layers(model)
        ours = gradients_of(model, **arguments)
        layers = model.config.num_hidden_layers
        counts = [calls.count(name) for name in ("rms_norm", "rotary", "silu_mul")]
        assert counts == [2 * layers + 1, 2 * layers, layers]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = gradients_of(model, **arguments)
        assert [calls.count(name) for name in ("rms_norm", "rotary", "silu_mul")] == [2 * count for count in counts]
    for name, gradient in exact.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))
    error, own_error = (
        sum(float((side[name] - gradient).square().sum() / gradient.square().sum()) for name, gradient in exact.items())
        for side in (rounded, own)
    )
    assert error <= 1.5 * own_error  # squares; the same number of roundings


def test_gradient_checkpointing_has_the_same_gradients(calls):
    model = tiny_model("llama").train()
    use_packed_attention(model)
    use_cpu_layers(model)
    arguments = packing_arguments([7, 30, 3], "cpu")
    with packed_forward():
        own = gradients_of(model, **arguments)
        for use_reentrant in (False, True):
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
            again = gradients_of(model, **arguments)
            torch.testing.assert_close(again, own, rtol=0, atol=1e-6)


def test_torch_compile_traces_the_layers_themselves(calls):
    model = tiny_model("llama").train()
    use_cpu_layers(model)
    norm = torch.compile(model.model.norm, fullgraph=True, backend="aot_eager")
    states = torch.randn(1, 5, model.config.hidden_size)
    traced = norm(states)
    assert not calls
    torch.testing.assert_close(traced, model.model.norm(states))


def test_a_window_limits_the_attention():
    model = tiny_model("mistral", sliding_window=4)
    use_packed_attention(model)
    with torch.inference_mode(), packed_forward():
        own = model.model(IDS, **packing_arguments([40], "cpu")).last_hidden_state
        use_cpu_layers(model)
        ours = model.model(IDS, **packing_arguments([40], "cpu")).last_hidden_state
        assert not torch.allclose(ours, tiny_model("mistral").model(IDS).last_hidden_state, atol=1e-3)
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-5)


def test_generation_keeps_the_keys_of_a_cache(calls):
    model = tiny_model("llama").eval()
    use_packed_attention(model)
    wanted = model.generate(IDS[:, :5], max_new_tokens=6, do_sample=False)
    use_cpu_layers(model)
    assert torch.equal(model.generate(IDS[:, :5], max_new_tokens=6, do_sample=False), wanted)
    assert "rms_norm" in calls
    assert "rotary" not in calls


def test_another_activation_is_the_models_own(calls):
    model = tiny_model("llama", hidden_act="gelu")
    with torch.inference_mode():
        own = model.model(IDS).last_hidden_state
        use_cpu_layers(model)
        torch.testing.assert_close(model.model(IDS).last_hidden_state, own, rtol=0, atol=1e-5)
    assert "silu_mul" not in calls


def test_layers_of_other_families_keep_their_class():
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1))
    kinds = [type(module) for module in model.modules()]
    use_cpu_layers(model)
    assert [type(module) for module in model.modules()] == kinds
    assert not any(kind in CPU_LAYERS.values() for kind in kinds)
