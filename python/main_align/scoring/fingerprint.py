"""what_states_depend_on, same_model: two fingerprints compared; `Scorer.fingerprint` is what scores depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATES = ("model", "revision", "digest", "markers", "bos", "dtype", "heads", "temperature")
"""the entries that a comparison with a bank depends on; the others change which pairs are scored, and rounding"""


def what_states_depend_on(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a fingerprint that decide whether two pairs' states can be compared.

    Args:
        fingerprint: `Scorer.fingerprint`.
    """
    return {name: fingerprint[name] for name in STATES if name in fingerprint}


def same_model(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return `now` under the name of `before` if both models have one digest: then they are the same model.

    Args:
        before: an older fingerprint.
        now: a newer one.
    """
    if "digest" in now and before.get("digest") == now["digest"]:
        return {**now, "model": before["model"]}
    return dict(now)
