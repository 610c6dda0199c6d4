"""The mutations still find the code that they break."""

from __future__ import annotations

import pytest

from .align import mutations as of_training
from .kernels import mutations as of_kernels


@pytest.mark.parametrize(
    "mutation", [*of_kernels.MUTATIONS, *of_training.MUTATIONS], ids=lambda m: f"{m.file}: {m.old}"
)
def test_the_code_of_a_mutation_exists(mutation):
    assert mutation.old in (of_kernels.ROOT / mutation.file).read_text()
    assert mutation.old != mutation.new
