"""The examples in README.md's section on the kernels, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

PAGE = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = PAGE.split("## The kernels")[1].split("## Measured")[0]
EXAMPLES = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.split("#")[0].strip())
def test_runs(example):
    names = {
        "query": normalize(torch.randn(12, 8)).requires_grad_(),
        "key": normalize(torch.randn(12, 8)).requires_grad_(),
        "logit_scale": torch.tensor(2.0, requires_grad=True),
        "response_hash": torch.arange(12) // 2,
        "hidden": torch.randn(20, 8, requires_grad=True),
        "cu_seqlens": torch.arange(0, 21, 5),
        "targets": torch.randint(0, 50, (20,)),
        "token_weights": torch.rand(20),
        "lm_head": torch.nn.Linear(8, 50, bias=False),
        "student_hidden": torch.randn(20, 8, requires_grad=True),
        "student_head": torch.randn(50, 8, requires_grad=True),
        "teacher_hidden": torch.randn(20, 16),
        "teacher_head": torch.randn(50, 16),
    }
    assert len(example.splitlines()) <= 4
    exec(example, names)
