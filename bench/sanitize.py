"""Run every CUDA kernel once on small ragged shapes, under compute-sanitizer in bench/device.sh:

compute-sanitizer --tool memcheck python -m bench.sanitize
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

import main_kernels as mk


def once(call: Callable[..., Tensor], *leaves: Tensor) -> None:
    """Forward and backward; the result is read, so that a failed launch shows here."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    value = call(*leaves).float().square().sum()
    value.backward()
    if not bool(value.isfinite()):
        raise SystemExit(f"{call}: not finite")


def pooling(dtype: torch.dtype) -> None:
    offsets = torch.tensor([3, 3, 150, 151, 230])
    for width, (weighted, attention), normalize in itertools.product(
        (37, 264), itertools.product([False, True], repeat=2), (False, True)
    ):
        hidden, weights, query = torch.randn(240, width).to(dtype), torch.rand(240), torch.randn(width) / width
        given = {"row_weights": weights} if weighted else {}
        given |= {"query": query} if attention else {}
        mode = "attention" if attention else "mean"

        def call(hidden, *rest, given=given, mode=mode, normalize=normalize):  # type: ignore[no-untyped-def]
            options = dict(zip(given, rest, strict=True))
            return mk.segment_pool(hidden, offsets, mode=mode, normalize=normalize, **options)

        once(call, hidden, *given.values())
    once(lambda hidden: mk.segment_pool(hidden, offsets, mode="last"), torch.randn(240, 37).to(dtype))


def sweeps(dtype: torch.dtype) -> None:
    query, key, head = (torch.randn(n, 40).to(dtype) for n in (130, 130, 530))
    scale, bias = torch.tensor(1.0), torch.tensor(-1.0)
    ids, targets = torch.arange(130) // 2, torch.arange(130) * 4
    for workspace_bytes in (0, 1 << 28):
        once(
            lambda q, k, w=workspace_bytes: mk.info_nce(q, k, temperature=0.5, pair_ids=ids, workspace_bytes=w),
            query,
            key,
        )
        once(
            lambda q, k, w=workspace_bytes: mk.sigmoid_loss(
                q, k, logit_scale=scale, logit_bias=bias, workspace_bytes=w
            ),
            query,
            key,
        )
    once(lambda h, w: mk.token_logprobs(h, w, targets, softcap=20.0), query, head)
    once(lambda h, w: mk.linear_cross_entropy(h, w, targets, label_smoothing=0.1, z_loss=1e-4), query, head)
    once(lambda h, w: mk.linear_kl(h, w, key, head, divergence="forward"), query, head)
    once(lambda h, w: mk.linear_kl(h, w, key, head, divergence="js"), query, head)
    once(lambda q, k: mk.mutual_information(q, k, estimator="js"), query, key)
    with torch.no_grad():
        mk.pair_scores(query, key, temperature=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    torch.set_default_device(parser.parse_args().device)
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pooling(dtype)
        sweeps(dtype)
    print("every kernel ran")


if __name__ == "__main__":
    main()
