"""Other model families: checked against their own logits when loaded, or refused."""

from __future__ import annotations

import pytest
import torch
from main_align.errors import UserError
from main_align.models.encoding import EncodedSequence
from main_align.models.forward import Forward
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

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
