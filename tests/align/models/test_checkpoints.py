"""Checkpoints that are not what they should be: weights missing, files torn, adapters, tokens without an embedding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from main_align.errors import UserError
from main_align.models import checkpoint, load
from main_align.models.packing import pack
from main_align.models.projection_heads import AlignmentHead
from main_align.scoring.scorer import Scorer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from tests.align.tiny_models import DEVICE, byte_tokenizer, tiny_model, tiny_model_folder

PAIRS = [{"instruction": f"say {n}", "response": f"it is {n * n}"} for n in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A copy of it to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_revision_of_a_model_on_this_machine_is_refused(folder):
    for refused in (
        lambda: load.load(folder, revision="bogus"),
        lambda: load.load("smollm2", revision="main"),
        lambda: Scorer(folder, revision="bogus"),
        lambda: AlignmentHead.from_pretrained(folder, revision="bogus"),
    ):
        with pytest.raises(UserError, match="a revision applies to a model of a hub"):
            refused()
    with pytest.raises(UserError, match="has no effect on a loaded model"):
        Scorer(load.load(folder), revision="bogus")


def test_a_reward_model_and_a_bare_backbone_lack_the_head(folder, copy):
    config = LlamaConfig.from_pretrained(folder)
    for kind in (LlamaForSequenceClassification, LlamaModel):
        (copy / "model.safetensors").unlink()
        kind(config).save_pretrained(copy)
        with pytest.raises(UserError, match=rf"{kind.__name__}.*lack lm_head.weight"):
            load.load(copy)


def test_a_backbone_with_tied_embeddings_is_accepted_and_a_reward_model_is_not(folder, copy):
    config = LlamaConfig.from_pretrained(folder, tie_word_embeddings=True)
    LlamaModel(config).save_pretrained(copy)
    assert Scorer(copy).score(PAIRS)[0]["status"] == "ok"
    LlamaForSequenceClassification(config).save_pretrained(copy)
    with pytest.raises(UserError, match="was trained to classify"):
        load.load(copy)


@pytest.mark.parametrize("weights", ["model.layers.1.", "model.norm", "model.layers.0.mlp.up_proj"])
def test_a_missing_layer_is_refused_by_name(copy, weights):
    tensors = load_file(copy / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith(weights)}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lack {weights}"):
        load.load(copy)


def test_a_trainer_refuses_what_the_scorer_refuses(copy):
    pytest.importorskip("trl")
    from main_align.training import AlignmentArguments
    from main_align.training.model.setup import set_up

    tensors = load_file(copy / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack lm_head\.weight"):
        set_up(str(copy), None, None, AlignmentArguments())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model.safetensors", b"abc"),
        ("model.safetensors", None),  # its first half
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "NewThing"}}'),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"{"),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "wide"}'),
        ("config.json", b'{"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4}'),
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b'{"peft_type": "LORA"}'),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(copy, file, text):
    path = copy / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if text is None else text)
    with pytest.raises(UserError) as caught:
        load.load(copy)
    assert str(copy) in str(caught.value)


def test_a_missing_package_is_the_only_remedy(copy, monkeypatch):
    quantised = json.loads((copy / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "gptq", "bits": 4}
    }
    (copy / "config.json").write_text(json.dumps(quantised))
    monkeypatch.setattr("transformers.quantizers.quantizer_gptq.is_optimum_available", lambda: False)
    with pytest.raises(UserError, match=r"a package is missing or too old \(ImportError: .*optimum.*\)$"):
        load.load(copy)


def test_a_file_instead_of_a_folder_is_refused(folder):
    with pytest.raises(UserError, match="it is a file; give the folder"):
        load.load(folder / "model.safetensors")


@pytest.fixture
def adapter(folder, tmp_path) -> Path:
    """A LoRA adapter with weights on the tiny model, as PEFT saves it: without a tokenizer."""
    peft = pytest.importorskip("peft")
    loaded = load.load(folder)
    adapted = peft.get_peft_model(loaded.model, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapters_record_of_a_revision_does_not_matter_to_a_base_on_this_machine(adapter):
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"revision": "main"}))
    load.load(adapter)


def test_an_adapter_is_loaded_onto_its_base(folder, adapter):
    from peft import PeftModel

    base, loaded = load.load(folder), load.load(adapter)
    assert loaded.digest not in (base.digest, checkpoint.folder_digest(adapter))
    assert type(loaded.model) is type(base.model)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        plain = base.model(ids).logits
        expected = PeftModel.from_pretrained(base.model, adapter).eval()(ids).logits
        got = loaded.model(ids).logits
    assert (plain - expected).abs().max() > 1e-2
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert Scorer(adapter, device="cpu").score(PAIRS)[0]["status"] == "ok"


def test_an_adapter_is_merged_into_a_base_that_is_not_quantised(adapter, monkeypatch):
    """Merged into 4 bits, the adapter would be rounded away."""
    dequantised = []
    monkeypatch.setattr(LlamaForCausalLM, "is_quantized", True, raising=False)
    monkeypatch.setattr(LlamaForCausalLM, "dequantize", lambda model: dequantised.append(model) or model.double())
    assert load.load(adapter).model is dequantised[0]
    assert dequantised[0].dtype == torch.float32


def test_an_adapter_brings_its_own_tokenizer(adapter):
    byte_tokenizer(template=None).save_pretrained(adapter)
    assert load.load(adapter).tokenizer.chat_template is None


def test_an_adapter_that_lacks_weights_is_refused(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="missing adapter keys"):
        load.load(adapter)


def test_an_adapter_without_its_base_or_peft_is_refused_with_a_remedy(adapter, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setitem(__import__("sys").modules, "peft", None)
        with pytest.raises(UserError, match=r"is an adapter on .*main-kernels\[train\].*merge_and_unload"):
            load.load(adapter)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(UserError, match="is an adapter on '/nowhere/base'"):
        load.load(adapter)


def test_the_loop_starts_from_an_adapter(adapter, tmp_path):
    from main_align.loop import LoopConfig
    from main_align.loop.model_pair import inspect_model

    info = inspect_model(str(adapter), LoopConfig(seed_pairs="s", output_dir=str(tmp_path), max_length=64))
    assert info.digest == checkpoint.find_checkpoint(str(adapter)).digest
    with pytest.raises(UserError, match="is an adapter, which vLLM cannot start from"):
        inspect_model(
            str(adapter), LoopConfig(seed_pairs="s", output_dir=str(tmp_path), max_length=64, generator="vllm")
        )


def test_a_token_without_an_embedding_is_refused_only_where_it_is_used(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<pad>", "magic"])  # ids 259 and 260, and the model has 259 embeddings
    tiny_model(vocab=259).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = Scorer(tmp_path)
    rows = scorer.score([*PAIRS, {"instruction": "a", "response": "it is magic"}])
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["unknown_token"]
    assert "the token 'magic' (260), and the model has embeddings for 259" in rows[-1]["reason"]
    assert rows[:4] == scorer.score(PAIRS)


def test_a_template_whose_tokens_the_model_lacks_is_refused(tmp_path):
    tokenizer = byte_tokenizer(special=("<|endoftext|>",), eos="<|endoftext|>")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tiny_model(vocab=257).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"every pair needs the token .*im_start.*257.*resize_token"):
        Scorer(tmp_path)


def test_the_trainer_names_the_row_with_an_unknown_token():
    pytest.importorskip("trl")
    from datasets import Dataset
    from main_align.models.encoding import PairEncoder
    from main_align.training.dataset.reader import PairReader

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["magic"])
    reader = PairReader(PairEncoder(tokenizer, close=True, vocabulary=259), 200, "raise")
    rows = [*PAIRS, {"instruction": "a", "response": "it is magic"}]
    with pytest.raises(UserError, match="row 4: it holds the token 'magic'"):
        reader.prepare(Dataset.from_list(rows), "train", None)


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 96,
    "rope_theta": 10000.0,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(("rope", "limit"), [(LONGROPE, 96), (DYNAMIC, 192)])
def test_a_batch_dependent_rope_limits_the_length(tmp_path, rope, limit):
    scorer = Scorer(tiny_model_folder(tmp_path, max_position_embeddings=192, rope_parameters=rope))
    assert scorer.max_length == limit
    long = {"instruction": "count", "response": "one two " * 25}
    alone, together = scorer.score(PAIRS), scorer.score([*PAIRS, long])
    for a, b in zip(alone, together, strict=False):
        assert a["nll_y_given_x"] == pytest.approx(b["nll_y_given_x"], abs=1e-5)
    assert together[-1]["status"] == "too_long"
    with pytest.raises(UserError, match=rf"max_length {limit + 1}: beyond {limit} tokens .*RoPE"):
        Scorer(tmp_path / "tiny-llama", max_length=limit + 1)


def test_without_the_limit_the_batch_would_change_the_scores(tmp_path):
    """What the limit is for: a long sequence in the pack moves every other one."""
    from main_align.models.forward import Forward

    loaded = load.load(tiny_model_folder(tmp_path, max_position_embeddings=192, rope_parameters=LONGROPE))
    forward = Forward(loaded.model.to(DEVICE))
    short, long = list(range(3, 40)), list(range(3, 150))
    with torch.inference_mode():
        alone, together = (forward.states(pack(ids)) for ids in ([short], [short, long]))
    assert (alone - together[: len(short)]).abs().max() > 1e-2
