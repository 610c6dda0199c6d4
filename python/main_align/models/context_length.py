"""context_length, changes_rope: the longest sequence whose RoPE does not depend on the rest of its batch."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


def context_length(config: PretrainedConfig) -> int | None:
    """Return the longest sequence, in tokens, with constant RoPE frequencies, or None if the config has no limit.

    `dynamic` and `longrope` change the frequencies of a whole packed batch once its longest sequence passes a limit.
    Beyond it, a pair's likelihood would depend on the other pairs of the batch.
    """
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    return min((n for n in (longest, *_rope_limits(text)) if n), default=None)


def changes_rope(config: PretrainedConfig) -> bool:
    """Return True if the model's RoPE depends on the length of the batch, so `context_length` is a hard limit."""
    return bool(_rope_limits(config.get_text_config()))


def _rope_limits(config: Any) -> list[int]:
    """Return the lengths at which RoPE changes: for `longrope` the original context, for `dynamic` the model's own."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    layers = [part for part in rope.values() if isinstance(part, dict)]  # some families have one per layer type
    own, limits = getattr(config, "max_position_embeddings", None), []
    for part in layers or [rope]:
        kind = part.get("rope_type", part.get("type", ""))
        original = getattr(config, "original_max_position_embeddings", None)
        if kind == "longrope":
            limits.append(part.get("original_max_position_embeddings") or original or own)
        elif "dynamic" in str(kind):
            limits.append(own)
    return [int(limit) for limit in limits if limit]
