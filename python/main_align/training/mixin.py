"""AlignmentMixin: mutual alignment inside `transformers.Trainer`, TRL's `SFTTrainer` or a subclass of either.

One micro-batch is one packed sequence and one forward of the backbone. What a step's loss is divided by is counted over
all its micro-batches and processes beforehand, so gradients do not depend on how a batch was cut up.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from datasets import IterableDataset
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from ..devices import warn_if_slow
from ..directional import Directional
from ..errors import UserError
from ..models import vocabulary
from . import checkpoint
from . import head as heads
from .across import gather_rows, world_size
from .alpha import Alpha
from .arguments import AlignmentArguments, MutualAlignmentConfig
from .bins import PackedPairs, best_fit
from .collator import X_GIVEN_Y, Y_GIVEN_X, PairCollator, X, Y
from .loss import Likelihoods, MutualAlignmentLoss, duality_gap, wide
from .meter import Meter
from .pairs import COLUMNS, PairReader
from .randomness import generator_states, restore_generators
from .settings import check_settings
from .setup import bare, check_ending, set_up
from .terms import EMBEDDING_TERMS
from .update import SYNTHETIC, EmbeddingGradients, Update
from .wrapped import AlignmentOutput, WrappedForward

if TYPE_CHECKING:  # at run time the trainer's class comes after the mixin
    _Trainer = Trainer
else:
    _Trainer = object


class AlignmentMixin(_Trainer):
    """Put it before the trainer class::

        class MyTrainer(AlignmentMixin, Trainer): ...

        MyTrainer(model, args, train_dataset=ds, processing_class=tokenizer, alignment=AlignmentArguments(semantic=0.1))

    Takes what the trainer takes and besides `alignment`, the settings (default: `args`, where it holds them, as
    MutualAlignmentConfig does). Refused: `data_collator`, `model_init`, `compute_loss_func`, `compute_metrics`,
    `preprocess_logits_for_metrics`, `formatting_func`. Data sets: prompt/completion, instruction/response, messages
    (text or turns), or tokenised with a mask; see main_align.training.pairs.

    Raises:
        UserError: before training, for data, models or options that cannot work, naming row or argument and remedy.
    """

    loss_is_scaled_for_ga: bool | None = True

    def __init__(
        self,
        model: str | nn.Module,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        alignment: AlignmentArguments | None = None,
        **options: Any,
    ) -> None:
        for name, given in ({name: options.get(name) for name in _REFUSED} | {"data_collator": data_collator}).items():
            if given is not None:
                raise UserError(f"{name} is not supported with mutual alignment: {_REFUSED[name]}")
        sft = hasattr(super(), "_prepare_dataset")  # which SFTTrainer calls by itself
        args = args or (MutualAlignmentConfig() if sft else TrainingArguments())
        if alignment is not None and isinstance(args, AlignmentArguments):
            raise UserError("args holds the settings of mutual alignment already: leave `alignment` out")
        self.alignment = alignment or (args if isinstance(args, AlignmentArguments) else AlignmentArguments())
        check_settings(args, sft=sft)
        quantization = options.pop("quantization_config", None) if isinstance(model, str) else None
        setup = set_up(model, processing_class, args, self.alignment, quantization)
        if getattr(args, "padding_free", False):
            args.padding_free = False  # sequences are always packed here; TRL's own way of it asks for more
        args.accelerator_config.dispatch_batches = False  # a packed batch cannot be cut for other processes
        self._base = bare(setup.model)
        for dtype in (self._base.dtype, torch.bfloat16 if args.bf16 else torch.float32):
            warn_if_slow(dtype, args.device)
        self._max_length, self._pooled = setup.max_length, bool(self.alignment.active(EMBEDDING_TERMS))
        self._reader: PairReader | None = None  # made when the first data set is prepared
        self._loss = MutualAlignmentLoss(self.alignment)
        self._alpha = Alpha(self.alignment.alpha_schedule, self.alignment.alpha)
        self._update: Update | None = None
        self._meters = {"train": Meter(), "eval": Meter()}
        self._seen_tokens: Tensor | int = 0
        self._last_log = (0, time.monotonic())
        if not sft:
            packing = getattr(args, "packing", False)
            train_dataset = self._prepare_dataset(train_dataset, setup.tokenizer, args, packing, None, "train")
            eval_dataset = self._prepare_dataset(eval_dataset, setup.tokenizer, args, packing, None, "eval")
        super().__init__(
            model=setup.model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=setup.tokenizer,
            **options,
        )
        self.data_collator = self._collator
        self.model_accepts_loss_kwargs = True  # before transformers 5.19: what tells it that the loss is scaled
        self._check_parallelism()
        self._head = None
        if self._pooled and self.alignment.projection_dim:
            self._head = heads.AlignmentHead(
                self._base.config.get_text_config().hidden_size, self.alignment.projection_dim
            )
            heads.attach(self._base, self._head)
        self._wrapped = WrappedForward(self._base, self._head)

    @property
    def alpha(self) -> float:
        """The weight of synthetic pairs, as it stands."""
        return float(self._alpha.now(self._progress(), torch.device("cpu")))

    # ---- data ----

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        if self._reader is None:
            self._lay_out(processing_class, args)
        assert self._reader is not None
        if dataset is None or isinstance(dataset, PackedPairs):
            return dataset
        if isinstance(dataset, dict):
            return {
                name: self._prepare_dataset(part, processing_class, args, packing, formatting_func, name)
                for name, part in dataset.items()
            }
        pairs = self._reader.prepare(dataset, dataset_name, getattr(args, "dataset_num_proc", None))
        if getattr(args, "shuffle_dataset", False) and pairs is not dataset:
            pairs = pairs.shuffle(seed=args.seed)
        if not packing:
            return pairs
        if isinstance(pairs, IterableDataset):
            raise UserError(f"packing needs the whole {dataset_name} data set, not a stream: set packing=False")
        lengths = [self._collator.tokens_of(pair) for pair in pairs]
        sequences = 1 + (self.alignment.directions == "both" or self._pooled)
        return PackedPairs(pairs, best_fit(lengths, sequences * self._reader.max_length))

    def _lay_out(self, tokenizer: Any, args: Any) -> None:
        """Makes the reader and the collator of the tokenizer that is saved with the model: SFTTrainer has given it its
        `eos_token` and its chat template by the time it prepares the first data set."""
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        directional = Directional(tokenizer, close=True, vocabulary=vocabulary(self._base))
        check_ending(directional, getattr(args, "eos_token", None))
        self._reader = PairReader(directional, self._max_length, self.alignment.overlong)  # type: ignore[arg-type]
        self._collator = PairCollator(
            directional,
            self.alignment.directions,  # type: ignore[arg-type]
            pooled=self._pooled,
            all_likelihoods=self.alignment.duality > 0,
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = list(COLUMNS)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._update = Update.of(batches, self.args.device) if batches else None
        return batches, None if self._update is None else self._update.tokens.sum()

    # ---- one micro-batch ----

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        update = self._update if model.training and self._update is not None else Update.of([inputs], self.args.device)
        pairs, terms = inputs["pairs"], self._loss.terms
        alpha = self._alpha.now(self._progress(), self.args.device)
        if self._contrasts_update(update) and update.cached is None:
            update.cached = self._embed_update(model, update)
        if update.cached is not None:
            restore_generators(update.cached.generators[update.position], self.args.device)
        output, states = self._wrapped.forward(
            model, inputs, weights=update.token_weights(pairs, terms, alpha), exact=terms.duality > 0
        )
        parts, metrics = self._parts(output, pairs, update)
        weights = {"likelihood": 1.0} | {name: terms.weight(name) for name in parts if name != "likelihood"}
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        self._stop_if_not_finite(loss, parts, output, pairs)
        meter = self._meters["train" if model.training else "eval"]
        self._measure(meter, output, pairs, update, metrics, alpha)
        if model.training and self._is_logged():
            self._measure_gradients(meter, update, parts, weights, states, pairs)
        self._finish(update, output, pairs, training=model.training)
        return (loss, output) if return_outputs else loss

    def _parts(
        self, output: AlignmentOutput, pairs: dict[str, Tensor], update: Update
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """This micro-batch's share of each part of the loss, so scaled that the mean over processes of the sums over
        micro-batches is the loss of the update; the likelihood part is weighted already."""
        assert output.lm_loss is not None
        assert output.logp is not None
        parts = {"likelihood": output.lm_loss * world_size()}  # the mean over processes takes it back
        if self._loss.terms.duality > 0:
            gaps = duality_gap(_likelihoods(output.logp, pairs["tokens"]))
            parts["duality"] = gaps.sum() / update.pairs * world_size()
        if output.embed_x is None or output.embed_y is None:
            return parts, {}
        if update.cached is not None:
            cached = update.cached
            for name, (dx, dy) in cached.gradients[update.position].items():
                # a product whose gradient is the cached one, moved to the value of this micro-batch's share
                pull = (wide(output.embed_x) * dx).sum() + (wide(output.embed_y) * dy).sum()
                parts[name] = pull - pull.detach() + cached.terms[name] / update.micro_batches
            return parts, cached.terms | cached.metrics if update.position == 0 else {}
        x, y = gather_rows(output.embed_x), gather_rows(output.embed_y)
        values, metrics = self._loss.of_embeddings(x, y, gather_rows(pairs["group"]))
        share = len(x) / update.pairs  # of the update's pairs, where micro-batches are contrasted each by itself
        metrics |= {name: value.detach() for name, value in values.items()}
        return parts | {name: value * share for name, value in values.items()}, metrics

    # ---- contrast over all micro-batches of an update ----

    def _contrasts_update(self, update: Update) -> bool:
        return update.micro_batches > 1 and self._pooled and self.alignment.contrast_accumulated

    def _embed_update(self, model: nn.Module, update: Update) -> EmbeddingGradients:
        """Gradient caching (Gao et al., 2021): all embeddings without a graph, the terms' gradients with respect to
        them; each micro-batch then sends back its own through its own forward."""
        sides: list[tuple[Tensor, Tensor]] = []
        groups, generators = [], []
        for batch in update.batches:
            generators.append(generator_states(self.args.device))
            batch = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                output, _ = self._wrapped.forward(model, batch, weights=None)
            assert output.embed_x is not None
            assert output.embed_y is not None
            sides.append((wide(output.embed_x), wide(output.embed_y)))
            groups.append(batch["pairs"]["group"])
        x, y = (torch.cat(side).requires_grad_() for side in zip(*sides, strict=True))
        with torch.enable_grad():
            values, metrics = self._loss.of_embeddings(gather_rows(x), gather_rows(y), gather_rows(torch.cat(groups)))
        sizes = [len(group) for group in groups]
        gradients: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in sizes]
        for name, value in values.items():
            dx, dy = torch.autograd.grad(value, (x, y), retain_graph=True)  # they share normalised sides
            for place, both in enumerate(zip(dx.split(sizes), dy.split(sizes), strict=True)):
                gradients[place][name] = both
        values = {name: value.detach() for name, value in values.items()}
        return EmbeddingGradients(values, metrics, gradients, generators)

    # ---- what is watched ----

    def _measure(
        self,
        meter: Meter,
        output: AlignmentOutput,
        pairs: dict[str, Tensor],
        update: Update,
        metrics: dict[str, Tensor],
        alpha: Tensor,
    ) -> None:
        assert output.logp is not None
        nll, tokens = -output.logp.detach().sum(0), pairs["tokens"].sum(0)
        for name, column in (("nll_y_given_x", Y_GIVEN_X), ("nll_x_given_y", X_GIVEN_Y)):
            if column in self._trained_columns():
                meter.add(name, nll[column], tokens[column])
        if self._loss.terms.duality > 0:
            gaps = duality_gap(_likelihoods(output.logp.detach(), pairs["tokens"]))
            meter.add("duality_gap", gaps.sum(), len(gaps))
        for name, value in metrics.items():
            meter.add(name, value)
        present = (update.tokens[SYNTHETIC].sum() > 0).float()  # the same names on every process, so no `if`
        meter.add("alpha", alpha * present, present)
        if update.position == 0:
            self._seen_tokens = self._seen_tokens + update.length

    def _measure_gradients(
        self,
        meter: Meter,
        update: Update,
        parts: dict[str, Tensor],
        weights: dict[str, float],
        states: Tensor,
        pairs: dict[str, Tensor],
    ) -> None:
        """The norm of each term's gradient with respect to the backbone's last states of the whole update, weighted as
        in the loss: how hard each pulls. Once a log line, for it walks the heads backward a second time."""
        for name, part in parts.items():
            gradient = None
            if part.requires_grad:
                (gradient,) = torch.autograd.grad(weights[name] * part, states, retain_graph=True, allow_unused=True)
            gradient = torch.zeros_like(states) if gradient is None else gradient / world_size()
            if name != "likelihood":
                update.add_square(f"grad_norm_{name}", gradient)
                continue
            columns = pairs["segments"] % 4
            for term, column in (("forward", Y_GIVEN_X), ("reverse", X_GIVEN_Y)):
                if column in self._trained_columns():
                    update.add_square(f"grad_norm_{term}", gradient[0, pairs["rows"][columns == column]])
        if update.last:
            for name, norm in update.norms().items():
                meter.add(name, norm)

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        if any(name.startswith("eval_") for name in logs):
            logs.update({f"eval_{name}": value for name, value in self._meters["eval"].read().items()})
        elif found := self._meters["train"].read():
            logs.update(found | self._throughput())
        super().log(logs, *args, **options)

    def _throughput(self) -> dict[str, float]:
        """Tokens that went through the model, of both directions, in all and a second since the last log line."""
        (before, when), self._last_log = self._last_log, (int(self._seen_tokens), time.monotonic())
        tokens, seconds = self._last_log[0] - before, self._last_log[1] - when
        return {"num_tokens": self._last_log[0], "tokens_per_second": tokens / max(seconds, 1e-9)}

    def _is_logged(self) -> bool:
        """Whether the step in progress ends in a log line."""
        step, every = self.state.global_step + 1, self.state.logging_steps or 0
        return (step == 1 and self.args.logging_first_step) or (every > 0 and step % every == 0)

    def _stop_if_not_finite(
        self, loss: Tensor, parts: dict[str, Tensor], output: AlignmentOutput, pairs: dict[str, Tensor]
    ) -> None:
        if bool(torch.isfinite(loss.detach())):
            return
        broken = [name for name, part in parts.items() if not bool(torch.isfinite(part.detach()))] or ["their sum"]
        fine = torch.ones_like(pairs["row"], dtype=torch.bool)
        for read in (output.logp, output.embed_x, output.embed_y):
            if read is not None:
                fine &= read.detach().isfinite().all(1)
        rows = (pairs["row"][~fine] if not bool(fine.all()) else pairs["row"]).tolist()
        raise UserError(
            f"step {self.state.global_step + 1}: the loss is {float(loss.detach())}; broken: {', '.join(broken)}, in "
            f"rows {', '.join(map(str, rows))} of the data set. Look at these rows; if they are sound, lower the "
            "learning rate or the weight of that term, or train in bfloat16 or float32 instead of float16."
        )

    # ---- evaluation ----

    def evaluate(self, eval_dataset: Any = None, *args: Any, **options: Any) -> dict[str, float]:
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            packing = bool(getattr(self.args, "packing", False))
            eval_dataset = self._prepare_dataset(eval_dataset, None, self.args, packing, None, "eval")
        return super().evaluate(eval_dataset, *args, **options)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    # ---- checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        weights: dict[str, Tensor] = {}
        if self._head is not None:
            weights = self._head.state_dict() if state_dict is None else heads.part_of(state_dict)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            checkpoint.write(output_dir or self.args.output_dir or ".", weights, self._alpha)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._read_checkpoint(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        assert self.state.best_model_checkpoint is not None
        self._read_checkpoint(self.state.best_model_checkpoint)

    def _read_checkpoint(self, folder: str) -> None:
        if not self.is_fsdp_enabled:
            checkpoint.read(folder, self._head, self._alpha)
        elif checkpoint.is_in(folder):  # the head is part of the sharded state there
            checkpoint.read(folder, None, self._alpha)

    # ---- small matters ----

    def _finish(self, update: Update, output: AlignmentOutput, pairs: dict[str, Tensor], *, training: bool) -> None:
        """After a micro-batch: alpha learns from the whole update's losses once it is complete."""
        assert output.logp is not None
        if not training:
            return
        if self._alpha.schedule == "loss_ratio":
            update.add_losses(-output.logp, pairs["synthetic"])
            if update.last:
                self._alpha.observe(update.mean_losses())
        update.position += 1
        if update.position == update.micro_batches:
            self._update = None

    def _trained_columns(self) -> tuple[int, ...]:
        both = {"both": (Y_GIVEN_X, X_GIVEN_Y), "forward": (Y_GIVEN_X,), "reverse": (X_GIVEN_Y,)}
        return both[self.alignment.directions]

    def _progress(self) -> float:
        return self.state.global_step / max(self.state.max_steps, 1)

    def _check_parallelism(self) -> None:
        plan = getattr(self.accelerator, "parallelism_config", None)
        for kind in ("tp", "cp", "sp"):
            if plan is not None and getattr(plan, f"{kind}_size", 1) > 1:
                raise UserError(f"{kind}_size > 1 is not supported with mutual alignment: use data parallelism or FSDP")
        if self.args.n_gpu > 1:
            raise UserError(
                "several GPUs in one process (nn.DataParallel) are not supported: start with accelerate launch or "
                "torchrun, or show one GPU with CUDA_VISIBLE_DEVICES"
            )


_REFUSED = {
    "data_collator": "pairs are packed by its own",
    "compute_loss_func": "the loss is its own; subclass and override compute_loss to add to it",
    "preprocess_logits_for_metrics": "there are no logits",
    "model_init": "give the model itself; its forward is read by hooks, which a new model would not have",
    "compute_metrics": "there are no logits to give it; the metrics are in the log",
    "formatting_func": "it would join the two sides of a pair; give prompt and completion instead",
}


def _likelihoods(logp: Tensor, tokens: Tensor) -> Likelihoods:
    """logp[N, 4], tokens[N, 4] as the loss module takes them."""
    return Likelihoods(
        y_given_x=logp[:, Y_GIVEN_X],
        x_given_y=logp[:, X_GIVEN_Y],
        y=logp[:, Y],
        x=logp[:, X],
        tokens_y=tokens[:, Y_GIVEN_X],
        tokens_x=tokens[:, X_GIVEN_Y],
    )
