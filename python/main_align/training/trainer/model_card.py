"""add_section: the section of a model card with the method, the terms and their weights."""

from __future__ import annotations

from pathlib import Path

from ..config import AlignmentArguments

PAPER = {"title": "Mutual Alignment Is Necessary for instruction tuning", "id": "2504.12913"}
_TITLE = "## Mutual alignment"
_TERMS = {
    "forward": "-log p(y\\|x), nats per token",
    "reverse": "-log p(x\\|y), nats per token",
    "duality_gap": "the duality gap, nats per token",
    "semantic": "symmetric InfoNCE of the pooled states of x and y",
    "intentional": "minus a bound on the mutual information of x and y ({estimator})",
    "structural": "cyclic consistency of the two similarity matrices",
}


def add_section(card: Path, alignment: AlignmentArguments) -> None:
    """Append method, terms and weights to a model card, unless it has the section."""
    text = card.read_text(encoding="utf-8")
    if _TITLE in text:
        return
    trained = {"forward": ("forward",), "reverse": ("reverse",)}.get(alignment.directions, ("forward", "reverse"))
    names = (*trained, *(name for name in _TERMS if name not in ("forward", "reverse")))
    rows = [
        f"| `{name}` | {alignment.weight(name):g} | {_TERMS[name].format(estimator=alignment.mi_estimator)} |"
        for name in alignment.active(names)
    ]
    section = [
        f"{_TITLE}\n",
        f"Trained on pairs of an instruction x and a response y with the terms of *{PAPER['title']}* "
        f"([arXiv {PAPER['id']}](https://arxiv.org/abs/{PAPER['id']})), directions: {alignment.directions}.\n",
        "| term | weight | |",
        "|---|---|---|",
        *rows,
    ]
    if alignment.uses_embeddings:
        section.append(
            f"\nEmbedding terms: temperature {alignment.contrastive_temperature:g}, projection to "
            f"{alignment.projection_dim} dimensions (0: none)."
        )
    card.write_text(text.rstrip() + "\n\n" + "\n".join(section) + "\n", encoding="utf-8")
