"""context_length: how long a sequence may be for a model's RoPE to be the same whatever it is batched with."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


def context_length(config: PretrainedConfig) -> int | None:
    """The longest sequence, in tokens, that a model takes at one and the same RoPE; None where the config has no limit.

    `dynamic` and `longrope` change the frequencies of a whole packed batch once its longest sequence passes a limit,
    so beyond it a pair's likelihood would depend on its neighbours.
    """
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    return min((n for n in (longest, *_rope_limits(text)) if n), default=None)


def changes_rope(config: PretrainedConfig) -> bool:
    """Return True if the model's RoPE depends on the length of the batch, so `context_length` is a hard limit."""
    return bool(_rope_limits(config.get_text_config()))


def _rope_limits(config: Any) -> list[int]:
    """The lengths at which RoPE changes: of `longrope` the original context, of `dynamic` the model's own."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    layers = [part for part in rope.values() if isinstance(part, dict)]  # some families have one for each layer type
    own, limits = getattr(config, "max_position_embeddings", None), []
    for part in layers or [rope]:
        kind = part.get("rope_type", part.get("type", ""))
        original = getattr(config, "original_max_position_embeddings", None)
        if kind == "longrope":
            limits.append(part.get("original_max_position_embeddings") or original or own)
        elif "dynamic" in str(kind):
            limits.append(own)
    return [int(limit) for limit in limits if limit]
