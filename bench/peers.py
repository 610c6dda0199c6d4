"""Peers: the libraries that the benchmarks compare with. None is a dependency.

    python -m bench peers                       # which are installed, and what they are compared with
    python -m bench peers --install PEERS       # into a folder of their own; torch and the environment stay as they are
    PYTHONPATH=PEERS python -m bench kernels    # and scoring

The versions are pinned in the extra [bench] of pyproject.toml. Each peer is imported on its first call and raises
`Absent` if that fails; the results then list it with the reason.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .command import command_parser

PACKAGES = {
    "sentence-transformers": "info_nce: MultipleNegativesRankingLoss, plain and cached",
    "open-clip-torch": "info_nce and sigmoid_loss: ClipLoss and SigLipLoss",
    "cut-cross-entropy": "linear_cross_entropy: its torch.compile form on a CPU, its kernels on a GPU",
    "liger-kernel": "linear_cross_entropy and training, on a GPU",
    "quack-kernels": "linear_cross_entropy, on a GPU; it needs nvidia-cutlass-dsl as well",
    "memeff": "info_nce, on a GPU",
    "inf-cl": "info_nce, on a GPU",
    "siglip-kernel": "sigmoid_loss, on a GPU",
    "lm-eval": "scoring: the log-likelihoods of HFLM",
    "py-data-juicer": "scoring: instruction_following_difficulty_filter",
}
"""Peers by package, with what they are compared with. pyproject.toml has their versions."""
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
MINI_BATCH = 512  # rows per mini-batch of the cached loss, as in the chunks of the floors


class Absent(Exception):
    """This contender cannot run here; the message says why."""


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each package, None if it is missing."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {package: version(package) for package in packages}


def preload() -> None:
    """Import every peer that is installed."""
    for peer in (_open_clip, _sentence_transformers, cut_cross_entropy):
        try:
            peer()
        except Absent:
            continue


def clip_loss() -> Callable[..., Tensor]:
    """Return open_clip's ClipLoss: loss(query, key, scale)."""
    return _open_clip().ClipLoss()


def siglip_loss() -> Callable[..., Tensor]:
    """Return open_clip's SigLipLoss: loss(query, key, scale, bias)."""
    return _open_clip().SigLipLoss()


def ranking_loss(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Compute sentence-transformers' MultipleNegativesRankingLoss in both directions on unit embeddings."""
    losses, options = _ranking(temperature)
    loss = losses.MultipleNegativesRankingLoss(None, **options)
    return loss.compute_loss_from_embeddings([query, key], None)


def cached_ranking_step(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Run forward and backward of the cached ranking loss, which runs the backward of every mini-batch itself."""
    losses, options = _ranking(temperature)
    model = torch.nn.Sequential(torch.nn.Identity())
    loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=MINI_BATCH, **options)
    return loss.calculate_loss([[query], [key]], with_backward=True)


@functools.cache
def cut_cross_entropy(impl: str = "torch_compile") -> Callable[..., Tensor]:
    """Return linear_cross_entropy of Cut Cross-Entropy. "torch_compile" runs on a CPU, "cce" needs a GPU."""
    return functools.partial(import_peer("cut_cross_entropy").linear_cross_entropy, impl=impl)


def torch_linear_cross_entropy() -> Callable[..., Tensor]:
    """Return torch's own linear_cross_entropy (torch 2.13 or newer)."""
    loss = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if loss is None:
        raise Absent(f"torch {torch.__version__} has no linear_cross_entropy")
    return loss


def needs_a_gpu() -> None:
    """Raise Absent on a machine without a CUDA device."""
    if not torch.cuda.is_available():
        raise Absent("needs a GPU")


@functools.cache
def liger(**options: Any) -> Callable[..., Tensor]:
    """Return Liger's fused linear cross-entropy: loss(hidden, weight, targets)."""
    needs_a_gpu()
    loss = import_peer("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
    return functools.partial(loss, **options)


@functools.cache
def liger_sm90() -> Callable[..., Tensor]:
    """Return Liger's head for Hopper, which needs CuTe's Python DSL."""
    needs_a_gpu()
    where = "liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90"
    return import_peer(where).liger_fused_linear_cross_entropy_sm90


@functools.cache
def quack(**options: Any) -> Callable[..., Tensor]:
    """Return Quack's chunked linear cross-entropy: loss(hidden, weight, targets).

    Quack has two variants. By default it takes the one that stores exponentials instead of logits if it can (Hopper,
    bfloat16, V a multiple of 128).
    """
    needs_a_gpu()
    loss = import_peer("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return functools.partial(loss, **options)


def memeff_loss(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Compute memeff's symmetric loss on unit embeddings. Its option `stable` would scale the gradient."""
    needs_a_gpu()
    loss = import_peer("memeff").MemoryEfficientCLIPLoss(temperature, normalized_inputs=True, stable=False)
    return loss(query, key)


def inf_cl_loss(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Compute Inf-CL on one device in both directions. It computes in float32."""
    needs_a_gpu()
    loss = import_peer("inf_cl").cal_flash_loss
    heads = {"scale": 1 / temperature, "head_dim": min(256, query.shape[1])}
    return (loss(query, key, **heads).mean() + loss(key, query, **heads).mean()) / 2


@functools.cache
def siglip_kernel() -> Callable[..., Tensor]:
    """Return siglip-kernel's loss: loss(query, key, log_scale, bias). It chooses its kernel by dtype and GPU."""
    needs_a_gpu()
    return import_peer("siglip_kernel").fused_siglip_loss


def _ranking(temperature: float) -> tuple[Any, dict[str, Any]]:
    losses = _sentence_transformers()
    return losses, {
        "scale": 1 / temperature,
        "similarity_fct": import_peer("sentence_transformers.util").dot_score,
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    }


@functools.cache
def _sentence_transformers() -> ModuleType:
    return import_peer("sentence_transformers.sentence_transformer.losses")


@functools.cache
def _open_clip() -> ModuleType:
    """Import only open_clip's losses, because the package itself needs torchvision and timm."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise Absent("open_clip is not installed")
    path = Path(found.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    if spec is None or spec.loader is None or not path.exists():
        raise Absent("open_clip has no loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_peer(name: str) -> ModuleType:
    """Import a module of a peer.

    Raises:
        Absent: the import fails.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # a partly installed peer may raise anything
        raise Absent(f"import {name}: {type(error).__name__}: {error}") from error


def pins() -> list[str]:
    """Return the requirements of the extra [bench]: the peers with their versions, and what they import."""
    (listed,) = re.findall(r"^bench = \[(.*?)^\]", PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return re.findall(r'"(.+?)"', listed)


def main(words: list[str] | None = None) -> int:
    parser = command_parser("peers", __doc__)
    parser.add_argument("--install", type=Path, metavar="FOLDER", help="install the pinned versions into this folder")
    chosen = parser.parse_args(words)
    if chosen.install:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--target", str(chosen.install)]
        return subprocess.run([*command, *pins()], check=False).returncode
    installed = versions()
    for name, text in PACKAGES.items():
        pinned = next((pin for pin in pins() if pin.startswith(f"{name}==")), name)
        print(f"{pinned:<32}  {installed[name] or 'not installed':<14}  {text}")
    return 0
