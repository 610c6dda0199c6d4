"""Compiled layers: traced once for packs of any length. Inductor itself takes too long for a test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from main_align.errors import UserError
from main_align.models.compiled import compile_layers
from main_align.models.forward import Forward
from main_align.scoring.scorer import Scorer
from torch import nn

from tests.align.scoring.test_scorer import numbers, some_pairs
from tests.align.tiny_models import DEVICE, tiny_model, tiny_model_folder


def compile_with(backend: Any) -> Any:
    def compiled(self: nn.Module, **options: Any) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend=backend, **options)

    return compiled


def test_layers_are_traced_once_for_packs_of_any_length(tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(nn.Module, "compile", compile_with(backend))
    torch._dynamo.reset()
    folder, pairs = tiny_model_folder(tmp_path, "mistral"), some_pairs()
    plain = Scorer(folder, device=DEVICE, batch_tokens=700)
    scorer = Scorer(folder, device=DEVICE, batch_tokens=700, compile=True)
    traced = len(graphs)
    assert 0 < traced <= 8  # before, between and after attention, with and without shared prefixes
    rows = scorer.score(pairs)
    assert len(scorer.prepare(pairs).micro_batches) > 3
    assert len(graphs) == traced
    np.testing.assert_allclose(numbers(rows), numbers(plain.score(pairs)), rtol=0, atol=1e-5)
    assert scorer.fingerprint == plain.fingerprint | {"compile": True}


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    def failing(graph, inputs):
        raise OSError("no compiler")

    monkeypatch.setattr(nn.Module, "compile", compile_with(failing))
    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"torch.compile failed, leave out compile .*no compiler"):
        Forward(tiny_model("llama").to(DEVICE), compile=True)
    model = tiny_model("llama")
    model._no_split_modules = None
    with pytest.raises(UserError, match="does not say which modules are its layers: leave out compile"):
        compile_layers(model)
