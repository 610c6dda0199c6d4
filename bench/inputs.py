"""hidden_states: what the head of SmolLM2 really receives, cached.

Logits of drawn states are flat, those of a model are not, and some losses skip work where a probability is negligible.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PAIRS = Path(__file__).parents[1] / "examples" / "pairs.jsonl"


def hidden_states(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what SmolLM2-135M-Instruct's head receives while it reads the pairs of examples/pairs.jsonl.

    Args:
        tokens: T, the number of positions, from the first pair on.

    Returns:
        Hidden states [T, 576], the weight of the head [49152, 576], both float32 and detached, and the tokens that
        really follow, int64 [T].

    Raises:
        ValueError: the pairs have fewer tokens.
    """
    from main_align.data.atomic import atomic_write  # main_align imports transformers, which other inputs do not need
    from main_align.models.smollm2 import cache_folder

    file = cache_folder() / "bench" / f"hidden_states_{tokens}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            save_file(dict(zip(("hidden", "weight", "targets"), _read(tokens), strict=True)), temporary)
    # the file is mapped into memory: what a run is the first to read of it would count as the run's own
    kept = load_file(file)
    return kept["hidden"].clone(), kept["weight"].clone(), kept["targets"].clone()


@torch.inference_mode()
def _read(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    from main_align.models.forward import Forward
    from main_align.models.load import load
    from main_align.models.packing import pack

    loaded = load()
    forward, states, targets = Forward(loaded.model), [], []
    for text in _texts():
        ids = loaded.tokenizer(text).input_ids
        states.append(forward.states(pack([ids]))[:-1])
        targets += ids[1:]
        if len(targets) >= tokens:
            head = loaded.model.get_output_embeddings().weight.detach().float().clone()
            hidden = torch.cat(states)[:tokens].float().clone()
            return hidden, head, torch.tensor(targets[:tokens])
    raise ValueError(f"{PAIRS} has {len(targets)} tokens, not {tokens}")


def _texts() -> Iterator[str]:
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        yield f"{pair['instruction']}\n\n{pair['response']}"
