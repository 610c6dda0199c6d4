"""Other model families: checked against their own logits when loaded, or refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from main_align import AlignmentCallback, AlignmentEvaluator
from main_align.errors import UserError
from main_align.loop.generation import Prompt, Sampling, TransformersGenerator
from main_align.models.encoding import EncodedSequence
from main_align.models.forward import Forward
from main_align.models.load import LoadedModel, check_model
from main_align.models.packed_attention import packed_forward, packing_arguments, use_packed_attention
from main_align.scoring.scorer import Scorer
from peft import LoraConfig, get_peft_model
from torch.testing._internal.two_tensor import TwoTensor
from transformers import (
    BitsAndBytesConfig,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    Llama4TextModel,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
    XLMConfig,
    XLMWithLMHeadModel,
)

from tests.align.tiny_models import byte_tokenizer, tiny_model

pytestmark = pytest.mark.usefixtures("on_the_device")
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
}


class Quantised(torch.nn.Parameter):
    """A weight of optimum-quanto, which torch refuses in inference mode."""

    __module__ = "optimum.quanto.tensor.weights.qbits"


@pytest.mark.parametrize("quantised", [False, True])
def test_weights_of_quanto_are_not_run_in_inference_mode(quantised):
    modes = set()
    for model in (tiny_model(), Qwen2ForCausalLM(Qwen2Config(**SMALL | {"vocab_size": 259}))):
        model = model.to(torch.get_default_device()).eval()
        if quantised:
            model.model.norm.weight = Quantised(model.model.norm.weight.detach())
        model.model.norm.register_forward_hook(
            lambda *_: modes.add((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        )
        forward = Forward(model)
        forward([EncodedSequence([1, 2, 3, 4, 5], (1, 3), (3, 5), (1, 3))])
        forward.check_positions(8)
        sampling = Sampling(max_new_tokens=1, temperature=0.0, top_p=1.0, seed=0)
        TransformersGenerator(model, byte_tokenizer(), sampling, "empty_response").generate([Prompt(0, [1, 2])])
    assert modes == {(not quantised, False)}


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_of_other_families_match_transformers(family):
    model = FAMILIES[family]().eval()
    ids = [5, 9, 33, 12, 40, 7]
    logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    wanted = [float(logp[i - 1, ids[i]]) for i in range(len(ids))]
    sequence = EncodedSequence(ids, first_span=(1, 3), second_span=(4, 6), pool_span=(1, 3))
    (_, (first, second)), _ = Forward(model)([sequence, sequence])
    assert first == pytest.approx(wanted[1:3], abs=1e-5)
    assert second == pytest.approx(wanted[4:6], abs=1e-5)


def test_attention_that_cannot_be_packed_is_refused():
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL, attn_logit_softcapping=50.0)).eval()
    with pytest.raises(UserError, match="softcap"):
        Forward(model)


def test_positions_that_do_not_restart_are_refused():
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.5)
    with pytest.raises(UserError, match="'bloom' gives other probabilities"):
        Forward(BloomForCausalLM(config).eval())


SLIGHT = {  # with untrained weights all logits are small, and so is what they depend on
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)),
    "xglm": lambda: XGLMForCausalLM(
        XGLMConfig(vocab_size=64, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=64)
    ),
    "xlm": lambda: XLMWithLMHeadModel(
        XLMConfig(vocab_size=64, emb_dim=32, n_layers=2, n_heads=4, causal=True, max_position_embeddings=64)
    ),
}


@pytest.mark.parametrize("family", SLIGHT)
def test_a_small_difference_between_small_logits_is_noticed(family):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=f"'{family}' gives other probabilities"):
        Forward(SLIGHT[family]().eval())


def test_equal_logits_are_no_reason_to_refuse_a_family():
    model = FAMILIES["qwen2"]().eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    Forward(model)


def test_large_logits_rounded_to_16_bits_are_no_reason_to_refuse_a_family():
    torch.manual_seed(0)
    config = PhiConfig(**SMALL)
    model = PhiForCausalLM(config).eval().bfloat16()
    torch.nn.init.normal_(model.lm_head.weight, std=0.4)
    torch.nn.init.constant_(model.lm_head.bias, 40.0)
    Forward(model)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = 32
WINDOWS_IN_MASKS = {
    "phimoe": lambda: PhimoeForCausalLM(PhimoeConfig(**SMALL, num_local_experts=4, sliding_window=WINDOW)),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **SMALL,
            **EXPERTS,
            shared_expert_intermediate_size=32,
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
}


@pytest.mark.parametrize("family", WINDOWS_IN_MASKS)
@torch.inference_mode()
def test_a_window_that_only_the_mask_has_is_kept(family):
    model = WINDOWS_IN_MASKS[family]().eval()
    ids = torch.randint(3, 64, (2 * WINDOW,)).tolist()
    logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = logp[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    sequence = EncodedSequence(ids, first_span=(1, 3), second_span=(3, len(ids)), pool_span=(1, 3))
    (_, (first, second)), _ = Forward(model)([sequence, sequence])
    assert [*first, *second] == pytest.approx(wanted, abs=1e-5)


def test_attention_within_chunks_is_refused():
    config = Llama4TextConfig(**SMALL, attention_chunk_size=16, num_local_experts=4, intermediate_size_mlp=64)
    with pytest.raises(UserError, match=r"Llama4ForCausalLM is not a backbone .* use a LLaMA or Mistral"):
        Forward(Llama4ForCausalLM(config).eval())
    model = Llama4TextModel(config).eval()
    use_packed_attention(model)
    with packed_forward(), pytest.raises(UserError, match="attends within chunks"):
        model(torch.arange(40)[None], **packing_arguments([40], model.device))


def test_a_family_that_fails_on_packed_sequences_is_refused():
    config = Qwen3NextConfig(**SMALL, **EXPERTS, linear_num_key_heads=2, linear_num_value_heads=2)
    # transformers before 5.24 ignores the bounds of sequences, instead of raising
    refusal = r"'qwen3_next' (cannot run packed sequences \(ValueError|gives other probabilities).*use a LLaMA"
    with pytest.raises(UserError, match=refusal):
        Forward(Qwen3NextForCausalLM(config).eval())


def test_a_class_that_raises_for_packed_sequences_is_refused():
    class Unpackable(LlamaForCausalLM):
        pass

    def refuse(module, args, arguments):
        if "cu_seq_lens_q" in arguments:
            raise ValueError("no bounds")

    model = Unpackable(tiny_model().config).eval()
    model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(UserError, match=r"'llama' cannot run packed sequences \(ValueError: no bounds\): use a LLaMA"):
        Forward(model)


def test_a_class_of_its_own_is_checked_whatever_its_model_type():
    class Scaled(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 3
            return output

    model = Scaled(tiny_model().config).eval()
    assert model.config.model_type == "llama"
    with pytest.raises(UserError, match="'llama' gives other probabilities"):
        Forward(model)


def test_adapters_that_are_not_merged_are_refused():
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(UserError, match=r"give model\.merge_and_unload\(\)"):
        Forward(adapted)
    with pytest.raises(UserError, match="head has an adapter that is not merged"):
        Forward(adapted.get_base_model())
    Forward(adapted.merge_and_unload())


@pytest.mark.parametrize(
    "weight",
    [
        lambda: torch.zeros(259, 32),  # a function, as after torch's dynamic quantisation
        torch.zeros(259, 32, dtype=torch.int8),  # as bitsandbytes' in 8 bits
        TwoTensor(torch.zeros(259, 32), torch.zeros(259, 32)),  # a wrapper, as torchao's and those of DTensor
    ],
)
def test_a_quantised_head_is_refused(weight):
    model = tiny_model()
    model.lm_head = torch.nn.Identity()
    model.lm_head.weight = weight
    for refused in (Forward, lambda model: check_model("tiny", model, byte_tokenizer())):
        with pytest.raises(UserError, match=r"has no weight matrix.* leave the head out of quantisation"):
            refused(model)


def test_weights_whose_outliers_depend_on_the_batch_are_not_scored():
    loaded = LoadedModel(tiny_model(), byte_tokenizer(), "tiny", None, "")
    loaded.model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(UserError, match=r"would depend on the batch: set llm_int8_threshold to 0\.0"):
        Scorer(loaded)
    with pytest.raises(UserError, match="would depend on the batch"):
        AlignmentCallback(SimpleNamespace(model=loaded.model), AlignmentEvaluator([{"prompt": "a", "completion": "b"}]))
    loaded.model.config.quantization_config.llm_int8_threshold = 0.0
    Scorer(loaded)


def test_a_length_without_learned_positions_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    loaded = LoadedModel(model, byte_tokenizer(), "tiny", None, "")
    assert Scorer(loaded, max_length=64).max_length == 64
    with pytest.raises(UserError, match="max_length 65: the model has no positions for so many tokens"):
        Scorer(loaded, max_length=65)
    with pytest.raises(UserError, match="in training mode"):
        Scorer(replace(loaded, model=tiny_model().train()))
