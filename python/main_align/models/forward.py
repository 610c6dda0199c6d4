"""Forward, Submitted: a packed forward pass that gives log-probabilities and pooled states of many sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel

from main_kernels import segment_pool, token_logprobs

from ..errors import UserError
from .compiled import compile_layers
from .cpu_layers import use_cpu_layers
from .encoding import EncodedSequence
from .host_copies import CopiedToHost, to_device
from .load import language_model_head
from .packed_attention import FLASH, PACKED, packed_forward, segment_arguments, use_packed_attention
from .packing import LEAST_SHARED, Packing, pack
from .projection_heads import AlignmentHead

SMALLEST_GAP = 1e-5  # nats: what float32 rounding adds if all log-probabilities are equal
_TEXT = [5 + 29 * place % 47 for place in range(48)]
_SHARED = _TEXT[: LEAST_SHARED + 8]
_PROBES = [_TEXT[:7], [*_SHARED, *_TEXT[30:]], [*_SHARED, *_TEXT[26:40]], _TEXT[20:]]
"""token ids of sequences, of which two share a prefix"""
KNOWN = (LlamaForCausalLM, MistralForCausalLM)  # covered by tests; any other class is checked when it is loaded


class SegmentLogps(NamedTuple):
    """Log-probabilities of the scored tokens of one sequence, end-of-turn tokens included, in nats.

    Attributes:
        first: float64[tokens] of the first segment.
        second: float64[tokens] of the second segment, given the first.
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]


class Submitted:
    """A forward pass whose results a GPU may still be computing.

    Args:
        copies: float32[R], log-probabilities of predicted tokens, and float32[n, D], pooled states.
        places: int64, for each token of each segment its place in the log-probabilities.
        lengths: tokens of each segment, two of each sequence.
    """

    def __init__(self, copies: CopiedToHost, places: NDArray[np.int64], lengths: list[int]) -> None:
        self._copies, self._places, self._lengths = copies, places, lengths

    def is_done(self) -> bool:
        """Return True if `result` would not wait."""
        return self._copies.are_there()

    def result(self) -> tuple[list[SegmentLogps], NDArray[np.float32]]:
        """Wait for the results, and return them as `Forward.__call__` does."""
        logp, pooled = self._copies.arrays()
        values = logp.astype(np.float64)[self._places]
        segments = np.split(values, np.cumsum(self._lengths)[:-1])
        return list(map(SegmentLogps, segments[0::2], segments[1::2])), pooled


class Forward:
    """Run the backbone, then the language-model head on the states that predict a scored token.

    `attention` is the name of the attention implementation in use. `shares_prefixes` is True if it lets sequences share
    a prefix. `width` is D, the width of an embedding: the model's hidden size, or that of the projections.

    Args:
        model: a causal language model in eval mode. Its attention implementation is changed, and its layers
            use CPU kernels between their products if it is a LLaMA or Mistral on the CPU and not compiled.
        projection: trained projection heads for the embeddings. Default: none.
        compile: compile the model's layers with torch.compile, now. Default False.

    Raises:
        UserError: packed log-probabilities differ from the model's own, the heads have another width, or the layers
            cannot be compiled.
    """

    def __init__(
        self, model: PreTrainedModel, projection: AlignmentHead | None = None, *, compile: bool = False
    ) -> None:
        if hasattr(model, "merge_and_unload"):
            raise UserError(f"{type(model).__name__} has an adapter that is not merged: give model.merge_and_unload()")
        head = language_model_head(type(model).__name__, model)
        if model.base_model is model:
            raise UserError(f"{type(model).__name__} is not a backbone with a head on it: use a LLaMA or Mistral model")
        if hasattr(head, "base_layer"):
            raise UserError("the language-model head has an adapter that is not merged: merge it into the model")
        self.model, self.device, self.head = model, model.device, head
        self.width = int(self.head.weight.shape[1])
        self.projection = projection
        if projection is not None:
            if projection.x.in_features != self.width:
                raise UserError(
                    f"the projection heads take states of width {projection.x.in_features}, and the model's have "
                    f"{self.width}: give the heads that were trained with this model"
                )
            self.width = projection.x.out_features
            self.projection = projection.to(self.device)
        self.logit_options = logit_options(model.config)
        self.without_gradients = without_gradients(model)
        if type(model) in KNOWN:
            self.attention = use_packed_attention(model)
            if not compile:
                use_cpu_layers(model)
        else:
            try:
                self._switch_and_check()
            except UserError:
                raise
            except Exception as error:  # a family may raise anything for arguments that it does not know
                raise UserError(
                    f"a model of type {model.config.model_type!r} cannot run packed sequences ({type(error).__name__}: "
                    f"{error}): use a LLaMA or Mistral model"
                ) from error
        self.shares_prefixes = self.attention != FLASH
        if compile:
            self._compile()

    def __call__(self, sequences: Sequence[EncodedSequence]) -> tuple[list[SegmentLogps], NDArray[np.float32]]:
        """Run n sequences in one pass.

        Args:
            sequences: the sequences. With projection heads, even ones start with x and odd ones with y.

        Returns:
            (logps, pooled): the log-probabilities of each sequence, and float32[n, D], mean states over the first
            segments' contents, projected if there are heads, and scaled to unit length.
        """
        return self.submit(sequences).result()

    def submit(self, sequences: Sequence[EncodedSequence]) -> Submitted:
        """Run n sequences in one pass. With a GPU, return when the pass is queued.

        Args:
            sequences: as for `__call__`.
        """
        with self.without_gradients():
            packing = pack([sequence.ids for sequence in sequences], share=self.shares_prefixes)
            hidden = self.states(packing)
            spans, before, pooled = [], [], []
            for rows, sequence in zip(packing.rows, sequences, strict=True):
                for start, stop in (sequence.first_span, sequence.second_span):
                    spans.append(rows[start:stop])
                    before.append(rows[start - 1 : stop - 1])
                pooled.append(rows[slice(*sequence.pool_span)])
            # The row of a token determines the row before it, so a token that sequences share is predicted once.
            scored, first, places = np.unique(np.concatenate(spans), return_index=True, return_inverse=True)
            predictors = np.concatenate(before)[first]
            logp = self.logprobs(hidden[self._to_device(predictors)], self._to_device(packing.ids[scored]))
            return Submitted(CopiedToHost(logp, self._pool(hidden, pooled)), places, [len(span) for span in spans])

    def states(self, packing: Packing) -> Tensor:
        """Return the final normed hidden states [T, D] of a packed row."""
        ids = self._to_device(packing.ids)[None]
        arguments = segment_arguments(packing.segments, self.device)
        if self.attention == PACKED:  # without a mask, transformers looks for segments, and the host waits for the GPU
            arguments["attention_mask"] = torch.ones_like(ids, dtype=torch.bool)
        with packed_forward(packing.segments):
            return self.model.base_model(input_ids=ids, **arguments).last_hidden_state[0]

    def check_positions(self, length: int) -> None:
        """Raise UserError unless the model has a position for every token of a sequence of this length.

        Learned positions end at the model's limit; RoPE goes beyond it.
        """
        token, last = (torch.tensor([[number]], dtype=torch.int64, device=self.device) for number in (0, length - 1))
        try:
            with self.without_gradients():
                self.model.base_model(input_ids=token, position_ids=last, use_cache=False)
        except (IndexError, RuntimeError) as error:
            raise UserError(f"max_length {length}: the model has no positions for so many tokens ({error})") from error

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return float32[R], the log-probabilities of targets [R] given hidden [R, D]."""
        bias = getattr(self.head, "bias", None)
        return token_logprobs(hidden, self.head.weight, targets, bias=bias, ignore_index=None, **self.logit_options)

    def _pool(self, hidden: Tensor, spans: Sequence[NDArray[np.int64]]) -> Tensor:
        rows = self._to_device(np.concatenate(spans))
        bounds = self._to_device(np.cumsum([0] + [len(span) for span in spans]))
        if self.projection is None:
            return segment_pool(hidden[rows].float(), bounds)
        pooled = segment_pool(hidden[rows].float(), bounds, normalize=False)
        x, y = self.projection(pooled[0::2], pooled[1::2])
        return F.normalize(torch.stack([x, y], 1).flatten(0, 1).float(), dim=1)

    def _to_device(self, numbers: NDArray[np.int64]) -> Tensor:
        return to_device(numbers, self.device)

    def _compile(self) -> None:
        """Compile the layers, for packs with and without shared prefixes."""
        compile_layers(self.model)
        try:
            for share in {False, self.shares_prefixes}:
                with self.without_gradients():
                    self.states(pack(_PROBES, share=share))
        except Exception as error:  # of torch's compiler, or of the one that it calls
            why = " ".join(str(error).partition("\n\n")[0].split())
            raise UserError(f"torch.compile failed, leave out compile ({type(error).__name__}: {why})") from error

    def _switch_and_check(self) -> None:
        """Switch to packed attention and compare with the model's own logits of single sequences.

        Some families differ by little: positions that do not restart change a model without training by thousandths of
        a nat. So the error is compared with the spread of the log-probabilities, which is as small there. The model
        rounds its logits to its dtype: a logit of 40 is up to 1/8 off in bfloat16.
        """
        config = self.model.config
        with self.without_gradients():
            own, rounding = [], []
            for ids in _PROBES:
                row = torch.tensor([ids], dtype=torch.int64, device=self.device)
                logits = self.model(row, use_cache=False).logits[0, :-1]
                rounding.append(logits.abs().amax(-1).float() * torch.finfo(logits.dtype).eps / 2)
                own.append(logits.float().log_softmax(-1).gather(1, row[0, 1:, None])[:, 0])
            self.attention = use_packed_attention(self.model)
            packing = pack(_PROBES, share=self.attention != FLASH)
            hidden = self.states(packing)
            ours = [
                self.logprobs(hidden[self._to_device(rows[:-1])], self._to_device(packing.ids[rows[1:]]))
                for rows in packing.rows
            ]
        wanted = torch.cat(own)
        gaps = torch.cat(ours) - wanted
        close = 3e-4 if self.model.dtype in (torch.float32, torch.float64) else 0.02
        allowed = close * wanted.std() + torch.cat(rounding).mean() + SMALLEST_GAP
        if not gaps.square().mean().sqrt() <= allowed:
            raise UserError(
                f"a model of type {config.model_type!r} gives other probabilities when sequences "
                f"are packed (by {float(gaps.abs().max()):.3g} nats), so its scores would depend on the batch: use a "
                "LLaMA or Mistral model."
            )


def without_gradients(model: torch.nn.Module) -> type[torch.inference_mode] | type[torch.no_grad]:
    """Return the context manager of a forward pass without gradients.

    It is the faster inference_mode, except with the tensors of optimum-quanto, which set version counters.
    """
    is_quanto = any(type(each).__module__.startswith("optimum.quanto") for each in model.parameters())
    return torch.no_grad if is_quanto else torch.inference_mode


def logit_options(config: Any) -> dict[str, Any]:
    """Return the options of `token_logprobs` for a family that scales or caps its logits."""
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies by it
    divisor = getattr(config, "logits_scaling", None)  # Granite divides by it
    temperature = (divisor or 1.0) / (scale or 1.0)
    if softcap and temperature != 1.0:
        raise UserError("a model with both a logit scale and a softcap is not supported")
    options = {"softcap": softcap, "temperature": temperature if temperature != 1.0 else None}
    return {name: float(value) for name, value in options.items() if value}


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` means that memory ran out: on the GPU, in torch's CPU allocator or in Python."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text and "memory" in text
