"""What happens inside the model's own forward: states are pooled, projected and scored there, where a wrapper (DDP,
FSDP, PEFT, accelerate's autocast) has the weights at hand, and logits are never made.

Two forward hooks, and none of the model's code changed: one on the backbone keeps its last states, one on the language
model replaces its output by what was read from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from main_kernels import linear_cross_entropy, segment_pool, sequence_logprobs

from ..errors import UserError
from ..models.forward import logit_options
from ..models.packed_attention import packed_forward
from ..models.projection_heads import AlignmentHead
from .loss import at_least_float32


@dataclass
class AlignmentOutput(ModelOutput):
    """What one packed forward gives; None where it was not asked for."""

    lm_loss: Tensor | None = None
    """scalar: the weighted sum of the tokens' -log p"""
    logp: Tensor | None = None
    """[N, 4] summed log-probabilities, nats; columns as in collator.Y_GIVEN_X and the rest"""
    embed_x: Tensor | None = None
    """[N, dim], not normalised"""
    embed_y: Tensor | None = None
    """[N, dim], not normalised"""


@dataclass
class _Reading:
    """What the hooks are to read from the next forward."""

    pairs: dict[str, Tensor]
    weights: Tensor | None  # [N, 4] of each token's -log p in lm_loss; None: embeddings only
    exact: bool  # logp is differentiated too
    states: Tensor | None = None  # [1, T, D]


class WrappedForward:
    """Hooks on a causal language model; `forward` runs them through whatever wraps it, and raises UserError where the
    head's weight cannot be used as a matrix there."""

    def __init__(self, model: PreTrainedModel, head: AlignmentHead | None) -> None:
        self.head = head
        self.options = logit_options(model.config)
        self._reading: _Reading | None = None
        model.base_model.register_forward_hook(self._keep)
        model.register_forward_hook(self._read)

    def forward(
        self, wrapped: nn.Module, batch: dict[str, Any], *, weights: Tensor | None, exact: bool = False
    ) -> tuple[AlignmentOutput, Tensor]:
        """Runs `wrapped` on a batch of the collator.

        Args:
            weights: [N, 4] factors of each token's -log p in ``lm_loss``; None leaves the head out.
            exact: whether ``logp`` will be differentiated, and not only ``lm_loss``.

        Returns:
            (output, states): states [1, T, D] of the backbone, in the graph.
        """
        with self._expecting(_Reading(batch["pairs"], weights, exact)) as reading, packed_forward():
            inputs = {name: value for name, value in batch.items() if name != "pairs"}
            output = wrapped(**inputs, logits_to_keep=1)
        assert reading.states is not None
        return output, reading.states

    @contextmanager
    def _expecting(self, reading: _Reading) -> Iterator[_Reading]:
        self._reading = reading
        try:
            yield reading
        finally:
            self._reading = None

    @torch.compiler.disable
    def _keep(self, backbone: nn.Module, args: Any, output: Any) -> None:
        if self._reading is not None:
            self._reading.states = output.last_hidden_state

    @torch.compiler.disable  # so that each term's gradient of the states can be measured before the step's backward
    def _read(self, model: PreTrainedModel, args: Any, output: Any) -> AlignmentOutput | None:
        reading = self._reading
        if reading is None:
            return None
        assert reading.states is not None
        hidden, pairs = reading.states[0], reading.pairs
        result = AlignmentOutput()
        if len(pairs["pool"]):
            pooled = segment_pool(hidden, pairs["pool"], normalize=False)[0::2]  # between them lie the markers
            x, y = pooled[0::2], pooled[1::2]
            result.embed_x, result.embed_y = (x, y) if self.head is None else self.head(x, y)
        if reading.weights is not None:
            result.lm_loss, result.logp = self._likelihoods(model, hidden[pairs["rows"]], reading)
        return result

    def _likelihoods(self, model: PreTrainedModel, hidden: Tensor, reading: _Reading) -> tuple[Tensor, Tensor]:
        """hidden[R, D] of the rows that predict a scored token -> (lm_loss, logp[N, 4])."""
        weight, bias = head_weight(model)
        pairs, factors = reading.pairs, reading.weights
        assert factors is not None
        count, segments = factors.numel(), pairs["segments"]
        hidden, softcap = hidden.to(weight.dtype), self.options.get("softcap")
        temperature = self.options.get("temperature", 1.0)
        if not len(segments):
            return 0.0 * (hidden.sum() + weight[:1].sum()), at_least_float32(hidden.new_zeros(factors.shape))
        if reading.exact:
            logp = sequence_logprobs(
                hidden,
                weight,
                pairs["targets"],
                segment_ids=segments,
                segments=count,
                bias=bias,
                softcap=softcap,
                temperature=temperature,
                ignore_index=None,
            ).view(factors.shape)
            return -(logp * factors.to(logp.dtype)).sum(), logp
        by_token = factors.flatten()[segments]
        loss = linear_cross_entropy(
            hidden / temperature if temperature != 1.0 else hidden,
            weight,
            pairs["targets"],
            token_weights=by_token,
            bias=None if bias is None else bias / temperature,
            softcap=softcap,
            reduction="none",
        )
        # what a token of weight 0 would have cost is not known: it was not computed
        each = torch.where(by_token > 0, loss.detach() / by_token, 0)
        logp = -each.new_zeros(count).index_add(0, segments, each).view(factors.shape)
        return loss.sum(), logp


def head_weight(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """The language-model head as a matrix [V, D] and its bias. UserError, with the remedy, where it is none here."""
    head: Any = model.get_output_embeddings()
    if hasattr(head, "lora_A") or hasattr(head, "base_layer"):
        raise UserError(
            "an adapter on lm_head is not supported: the loss is made from the head's weight without logits, so the "
            "adapter would not be trained. Take lm_head out of target_modules; to train the head itself, name it in "
            "modules_to_save."
        )
    weight, bias = head.weight, getattr(head, "bias", None)  # of PEFT's trained copy, where modules_to_save names it
    if hasattr(weight, "ds_id"):
        raise UserError("DeepSpeed ZeRO-3 keeps lm_head in parts outside its own call: use ZeRO-2, or FSDP2")
    if type(weight).__name__ == "DTensor" and torch.is_grad_enabled() and model.training:
        raise UserError(
            "lm_head is sharded apart from the model, so its weight is in parts where the loss is made: leave it to "
            "the outermost FSDP unit (wrap the decoder layers only, as TRANSFORMER_BASED_WRAP does)"
        )
    return weight, bias
