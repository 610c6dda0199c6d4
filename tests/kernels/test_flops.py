"""FlopCounterMode counts the products inside the ops: as many as the profiler sees."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from main_kernels import linear_cross_entropy, linear_kl, registration, token_logprobs

from .calls import PUBLIC, ids, values_and_gradients
from .contract import DEVICE
from .test_ops import multiply_adds

UNEQUAL = {
    "linear_kl_unequal": lambda q, k: linear_kl(q, k, k, k, token_mask=ids(q) > 1, reduction="none") * ids(q),
    "token_logprobs_unequal": lambda q, k: token_logprobs(q, k, ids(q)) * ids(q),
    "token_logprobs_masked": lambda q, k: token_logprobs(q, k, ids(q), ignore_index=3),
    "linear_cross_entropy_mean": lambda q, k: linear_cross_entropy(q, k, ids(q)),
    "linear_cross_entropy_frozen": lambda q, k: linear_cross_entropy(q, k.detach(), ids(q)),
}
COUNTED_CALLS = {**PUBLIC, **UNEQUAL}


def counted(name, query, key) -> int:
    with FlopCounterMode(display=False) as counter:
        values_and_gradients(COUNTED_CALLS[name], query, key)
    return counter.get_total_flops()


@pytest.mark.skipif(DEVICE != "cpu", reason="fused products are no separate events")
@pytest.mark.parametrize(
    "name", [name for name in COUNTED_CALLS if name not in ("info_nce_own", "segment_pool_attention")]
)
def test_the_counted_flops_match_the_profiler(name):
    query, key = (torch.randn(40, 24, requires_grad=True) for _ in range(2))
    assert counted(name, query, key) == 2 * multiply_adds(lambda: values_and_gradients(COUNTED_CALLS[name], query, key))


@pytest.mark.parametrize("name", ["info_nce", "linear_kl_unequal", "linear_cross_entropy", "cyclic_consistency"])
def test_flops_are_counted_on_meta_tensors(name):
    """All rows count where nobody can say which do."""
    query, key = (torch.randn(40, 24, device="meta", requires_grad=True) for _ in range(2))
    on_meta = counted(name, query, key)
    assert on_meta > 0
    with FakeTensorMode():
        fake = [torch.empty(40, 24, requires_grad=True) for _ in range(2)]
        assert counted(name, *fake) == on_meta


def test_a_running_counter_gets_the_formulas():
    """It copies the registered ones when it is made."""
    query, key = (torch.randn(40, 24, requires_grad=True) for _ in range(2))
    counter = FlopCounterMode(display=False)
    for op in registration.FLOP_FORMULAS:
        counter.flop_registry.pop(getattr(torch.ops.main_kernels, op), None)
    with counter:
        values_and_gradients(COUNTED_CALLS["info_nce"], query, key)
    assert counter.get_total_flops() == counted("info_nce", query, key)
