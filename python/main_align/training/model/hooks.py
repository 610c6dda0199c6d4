"""HookedForward and AlignmentOutput: embeddings and likelihoods from inside a model's own forward, without logits.

Two forward hooks: one on the backbone saves its last hidden states, one on the language model replaces its output by
AlignmentOutput. Inside the forward, a wrapper (DDP, FSDP, PEFT) has gathered the weights. A third hook, on the token
embeddings, adds NEFTune's noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from main_kernels import linear_cross_entropy, segment_pool, sequence_logprobs

from ...errors import UserError
from ...models.devices import accumulator_dtype
from ...models.forward import logit_options
from ...models.load import check_unsharded
from ...models.packed_attention import packed_forward
from ...models.projection_heads import AlignmentHead


@dataclass
class AlignmentOutput(ModelOutput):
    """Result of one packed forward; None for what was not requested."""

    lm_loss: Tensor | None = None
    """scalar, the weighted sum of -log p over the scored tokens"""
    lm_loss_columns: Tensor | None = None
    """[4], lm_loss split by likelihood column, detached"""
    logp: Tensor | None = None
    """[N, 4] summed log-probabilities, nats; columns as in encoding.LogpColumn"""
    embed_x: Tensor | None = None
    """[N, dim], not normalised"""
    embed_y: Tensor | None = None
    """[N, dim], not normalised"""


@dataclass
class _Request:
    """Input of the hooks for the next forward, and the states that they save."""

    pairs: dict[str, Tensor]
    weights: Tensor | None  # [N, 4] factor of each token's -log p in lm_loss; None: embeddings only
    differentiable_logp: bool
    bounds: Tensor  # int32 [S + 1], the first row of each sequence, and the end
    states: Tensor | None = None  # [1, T, D]
    autocast_dtype: torch.dtype | None = None  # of the backbone; None: no autocast


class HookedForward:
    """Hooks on a causal language model, and `forward`, which runs them through any wrapper of the model.

    Args:
        model: the causal language model itself, without wrappers.
        head: projection heads for the pooled states. None: the states themselves are the embeddings.
        noise_alpha: strength of NEFTune's noise on the token embeddings in training. Default: no noise.
    """

    def __init__(self, model: PreTrainedModel, head: AlignmentHead | None, *, noise_alpha: float | None = None) -> None:
        self.head, self.noise_alpha = head, noise_alpha
        self.options = logit_options(model.config)
        self._request: _Request | None = None
        backbone: Any = model.get_decoder()  # OPT's forward calls it, and not base_model, of which it is a part
        backbone.register_forward_hook(self._save_states)
        model.register_forward_hook(self._replace_output)
        if noise_alpha is not None:
            embeddings: Any = model.get_input_embeddings()
            embeddings.register_forward_hook(self._add_noise)

    def forward(
        self, wrapped: nn.Module, batch: dict[str, Any], *, weights: Tensor | None, differentiable_logp: bool = False
    ) -> tuple[AlignmentOutput, Tensor]:
        """Run a batch of the collator.

        Args:
            wrapped: the model, in any wrapper.
            batch: as PairCollator returns it, on the model's device.
            weights: float [N, 4], factor of each token's -log p in ``lm_loss``. None skips the language-model head.
            differentiable_logp: True if ``logp`` is differentiated too, and not only ``lm_loss``.

        Returns:
            (output, states): the output, and the backbone's last hidden states [1, T, D], in the graph.

        Raises:
            UserError: the language-model head's weight cannot be used as a matrix, or a wrapper skips the hooks.
        """
        request = _Request(batch["pairs"], weights, differentiable_logp, batch["cu_seq_lens_q"])
        with self._requested(request), packed_forward():
            inputs = {name: value for name, value in batch.items() if name != "pairs"}
            output = wrapped(**inputs, logits_to_keep=1)
        if request.states is None or not isinstance(output, AlignmentOutput):
            raise UserError(
                f"{type(wrapped).__name__} runs the model without its forward hooks, from which the loss is read, as "
                "AdaLoraConfig and AdaptionPromptConfig do: use another adapter, such as LoraConfig"
            )
        return output, request.states

    @contextmanager
    def _requested(self, request: _Request) -> Iterator[_Request]:
        self._request = request
        try:
            yield request
        finally:
            self._request = None

    @torch.compiler.disable
    def _add_noise(self, embeddings: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Add uniform noise of size alpha / sqrt(L D) to each sequence of L tokens, as NEFTune does without packing."""
        if self._request is None or not embeddings.training:
            return None
        assert self.noise_alpha is not None
        lengths = self._request.bounds.diff()
        sizes = (self.noise_alpha / (lengths * output.shape[-1]).sqrt()).repeat_interleave(lengths)  # [T]
        return output + sizes[None, :, None].to(output.dtype) * torch.empty_like(output).uniform_(-1, 1)

    @torch.compiler.disable
    def _save_states(self, backbone: nn.Module, args: Any, output: Any) -> None:
        if self._request is not None:
            self._request.states = states = output.last_hidden_state
            if torch.is_autocast_enabled(states.device.type):
                self._request.autocast_dtype = torch.get_autocast_dtype(states.device.type)

    @torch.compiler.disable  # so that each term's gradient of the states can be measured before the step's backward
    def _replace_output(self, model: PreTrainedModel, args: Any, output: Any) -> AlignmentOutput | None:
        request = self._request
        if request is None or request.states is None:
            return None
        # accelerate's autocast is inside model.forward, which this hook follows
        dtype, kind = request.autocast_dtype, request.states.device.type
        with nullcontext() if dtype is None else torch.autocast(kind, dtype):
            return self._read(model, request.states[0], request)

    def _read(self, model: PreTrainedModel, hidden: Tensor, request: _Request) -> AlignmentOutput:
        """Return embeddings and likelihoods of the states [T, D]."""
        result, pairs = AlignmentOutput(), request.pairs
        if len(pairs["pool"]):
            pooled = segment_pool(hidden, pairs["pool"], normalize=False)[0::2]  # odd segments are the markers between
            x, y = pooled[0::2], pooled[1::2]
            result.embed_x, result.embed_y = (x, y) if self.head is None else self.head(x, y)
        if request.weights is not None:
            self._add_likelihoods(result, model, hidden[pairs["rows"]], request)
        return result

    def _add_likelihoods(
        self, result: AlignmentOutput, model: PreTrainedModel, hidden: Tensor, request: _Request
    ) -> None:
        """Set lm_loss, lm_loss_columns and logp; hidden [R, D]: states of the rows that predict a scored token."""
        weight, bias = lm_head_weight(model)
        pairs, factors = request.pairs, request.weights
        assert factors is not None
        count, segments = factors.numel(), pairs["segments"]
        hidden, softcap = hidden.to(weight.dtype), self.options.get("softcap")
        temperature = self.options.get("temperature", 1.0)
        sums = torch.zeros(count, dtype=accumulator_dtype(hidden.device), device=hidden.device)  # nats of many tokens
        if not len(segments):
            result.lm_loss = 0.0 * (hidden.sum() + weight[:1].sum())
            result.logp, result.lm_loss_columns = sums.view(factors.shape), sums[:4]
            return
        if request.differentiable_logp:
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
            result.lm_loss, result.logp = -(logp * factors.to(logp.dtype)).sum(), logp
            result.lm_loss_columns = -(logp.detach().to(sums.dtype) * factors).sum(0)
            return
        token_factors = factors.flatten()[segments]
        loss = linear_cross_entropy(
            hidden / temperature if temperature != 1.0 else hidden,
            weight,
            pairs["targets"],
            token_weights=token_factors,
            bias=None if bias is None else bias / temperature,
            softcap=softcap,
            reduction="none",
        )
        weighted = loss.detach().to(sums.dtype)
        # the kernel skips tokens of weight 0, so their log p is unknown
        nll = torch.where(token_factors > 0, weighted / token_factors, 0)
        result.lm_loss, result.logp = loss.sum(), -sums.index_add(0, segments, nll).view(factors.shape)
        result.lm_loss_columns = sums.new_zeros(4).index_add(0, segments % 4, weighted)


def lm_head_weight(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Return the weight [V, D] and the bias of the language-model head. UserError if it cannot be used as a matrix."""
    head: Any = model.get_output_embeddings()
    if hasattr(head, "lora_A") or hasattr(head, "base_layer"):
        raise UserError(
            "an adapter on lm_head is not supported: the loss reads the head's weight instead of calling it, so the "
            "adapter would not be trained. Remove lm_head from target_modules; to train the head itself, add it to "
            "modules_to_save."
        )
    weight, bias = head.weight, getattr(head, "bias", None)  # PEFT's trained copy if modules_to_save has it
    check_unsharded(weight)
    if type(weight).__name__ == "DTensor" and torch.is_grad_enabled() and model.training:
        raise UserError(
            "lm_head is an FSDP unit of its own, so its weight is sharded while the loss reads it: leave it in "
            "the outermost FSDP unit (wrap the decoder layers only, as TRANSFORMER_BASED_WRAP does)"
        )
    return weight, bias
