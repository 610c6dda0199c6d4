"""AlignmentMixin: mutual alignment inside `transformers.Trainer`, TRL's `SFTTrainer` or a subclass of either.

One micro-batch is one packed sequence and one forward of the backbone. What a step's loss is divided by is counted over
all its micro-batches and processes beforehand, so gradients do not depend on how a batch was cut up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, PredictionOutput

from ..errors import UserError
from ..models.devices import warn_if_slow
from ..models.projection_heads import AlignmentHead
from . import checkpoint, model_card
from . import projection as heads
from .alpha import Alpha
from .config import AlignmentArguments, MutualAlignmentConfig
from .dataset import COLUMNS
from .distributed import gather_rows, world_size
from .evaluation import Evaluation
from .hooks import AlignmentOutput, WrappedForward
from .loss import MutualAlignmentLoss, at_least_float32, duality_gap
from .monitor import Monitor, check_finite
from .prepare import set_up, unwrap_peft
from .prepare_data import Preparation, packs_evaluation
from .rng import generator_states, restore_generators
from .settings import check_arguments, check_optimizer, check_parallelism, check_settings
from .step import EmbeddingGradients, Update, likelihoods_of

if TYPE_CHECKING:  # at run time the trainer's class comes after the mixin
    _Trainer = Trainer
else:
    _Trainer = object


class AlignmentMixin(_Trainer):
    """Put it before the trainer class::

        class MyTrainer(AlignmentMixin, Trainer): ...

        settings = AlignmentArguments(semantic_weight=0.1)
        MyTrainer(model, args, train_dataset=ds, processing_class=tokenizer, alignment=settings)

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
        check_arguments({"data_collator": data_collator, **options})
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
        self._base = unwrap_peft(setup.model)
        for dtype in (self._base.dtype, torch.bfloat16 if args.bf16 else torch.float32):
            warn_if_slow(dtype, args.device)
        self._max_length = setup.max_length
        self._preparation: Preparation | None = None  # made when the first data set is prepared
        self._loss = MutualAlignmentLoss(self.alignment)
        self._alpha = Alpha(self.alignment.synthetic_weight_schedule, self.alignment.synthetic_weight)
        self._update: Update | None = None
        self._monitor = Monitor(self.alignment.columns, duality_gap=self.alignment.duality_gap_weight > 0)
        self._evaluation: Evaluation | None = None
        if not sft:
            packing = getattr(args, "packing", False)
            train_dataset = self._prepare_dataset(train_dataset, setup.tokenizer, args, packing, None, "train")
            packing = packs_evaluation(args)
            eval_dataset = self._prepare_dataset(eval_dataset, setup.tokenizer, args, packing, None, "eval")
        super().__init__(
            model=setup.model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=setup.tokenizer,
            **options,
        )
        assert self._preparation is not None
        self.data_collator = self._preparation.collator
        self.model_accepts_loss_kwargs = True  # before transformers 5.19: what tells it that the loss is scaled
        check_parallelism(self.accelerator, self.args)
        self._head: AlignmentHead | None = None
        if self.alignment.pools and self.alignment.projection_dim:
            width = self._base.config.get_text_config().hidden_size
            self._head = AlignmentHead(width, self.alignment.projection_dim)
            heads.attach(self._base, self._head)
        check_optimizer(self.optimizer, self.model if options.get("peft_config") else self._head)
        self._wrapped: WrappedForward = WrappedForward(self._base, self._head)

    @property
    def synthetic_weight(self) -> float:
        """The weight of synthetic pairs, as it stands."""
        return float(self._alpha.now(self._progress(), torch.device("cpu")))

    # ---- data ----

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        if self._preparation is None:  # SFTTrainer has given the tokenizer its template and its stop token by now
            self._preparation = Preparation(self._base, processing_class, args, self.alignment, self._max_length)
        if isinstance(dataset, dict):
            return {
                name: self._prepare_dataset(part, processing_class, args, packing, formatting_func, name)
                for name, part in dataset.items()
            }
        return self._preparation.prepare(dataset, args, packing=packing, name=dataset_name)

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
        token_loss_weights = update.token_loss_weights(pairs, terms, alpha)
        # in an evaluation each token counts, so that the likelihoods are known whatever they weigh in the loss
        weights = token_loss_weights if model.training else torch.ones_like(token_loss_weights)
        output, states = self._wrapped.forward(model, inputs, weights=weights, exact=terms.duality_gap_weight > 0)
        assert output.logp is not None
        if not model.training:
            output.lm_loss = -(output.logp * token_loss_weights).sum()
        if model.training:
            self._monitor.measure(update, pairs, output.logp, token_loss_weights, alpha)
        parts = self._parts(output, pairs, update, log=model.training)
        weighted = {name: (1.0 if name == "likelihood" else terms.weight(name)) * part for name, part in parts.items()}
        loss = torch.stack(list(weighted.values())).sum()
        check_finite(loss, parts, output, pairs, self.state.global_step + 1)
        if model.training:
            if self._is_logged():
                self._monitor.measure_gradients(update, weighted, states, pairs)
            self._finish(update, output, pairs)
        elif self._evaluation is not None:
            self._evaluation.add(output, pairs, loss)
        return (loss, output) if return_outputs else loss

    def _parts(
        self, output: AlignmentOutput, pairs: dict[str, Tensor], update: Update, *, log: bool
    ) -> dict[str, Tensor]:
        """This micro-batch's share of each part of the loss, so scaled that the mean over processes of the sums over
        micro-batches is the loss of the update; the likelihood part is weighted already."""
        assert output.lm_loss is not None
        assert output.logp is not None
        parts = {"likelihood": output.lm_loss * world_size()}  # the mean over processes takes it back
        if self._loss.terms.duality_gap_weight > 0:
            gaps = duality_gap(likelihoods_of(output.logp, pairs["tokens"]))
            parts["duality_gap"] = gaps.sum() / update.pairs * world_size()
        if output.embed_x is None or output.embed_y is None or self._evaluation is not None:
            return parts  # an evaluation contrasts the whole set at its end
        if update.cached is not None:
            cached = update.cached
            for name, (dx, dy) in cached.gradients[update.position].items():
                # a product whose gradient is the cached one, moved to the value of this micro-batch's share
                pull = (at_least_float32(output.embed_x) * dx).sum() + (at_least_float32(output.embed_y) * dy).sum()
                parts[name] = pull - pull.detach() + cached.terms[name] / update.micro_batches
            if update.position == 0:
                self._monitor.measure_contrast(cached.terms | cached.metrics, update.pairs)
            return parts
        x, y = gather_rows(output.embed_x), gather_rows(output.embed_y)
        values, metrics = self._loss.embedding_terms(x, y, gather_rows(pairs["group"]))
        if log and len(x) > 1:  # a pair alone has no contrast, and what it has not does not count
            self._monitor.measure_contrast(values | metrics, len(x))
        # micro-batches are contrasted each by itself: each counts by its share of the update's pairs
        return parts | {name: value * len(x) / update.pairs for name, value in values.items()}

    # ---- contrast over all micro-batches of an update ----

    def _contrasts_update(self, update: Update) -> bool:
        return update.micro_batches > 1 and self.alignment.pools and self.alignment.contrast_across_accumulation

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
            sides.append((at_least_float32(output.embed_x), at_least_float32(output.embed_y)))
            groups.append(batch["pairs"]["group"])
        x, y = (torch.cat(side).requires_grad_() for side in zip(*sides, strict=True))
        with torch.enable_grad():
            values, metrics = self._loss.embedding_terms(gather_rows(x), gather_rows(y), gather_rows(torch.cat(groups)))
        sizes = [len(group) for group in groups]
        gradients: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in sizes]
        for name, value in values.items():
            dx, dy = torch.autograd.grad(value, (x, y), retain_graph=True)  # they share normalised sides
            for place, both in enumerate(zip(dx.split(sizes), dy.split(sizes), strict=True)):
                gradients[place][name] = both
        values = {name: value.detach() for name, value in values.items()}
        return EmbeddingGradients(values, metrics, gradients, generators)

    # ---- what is watched ----

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        logs.update(self._monitor.read())
        super().log(logs, *args, **options)

    def _is_logged(self) -> bool:
        """Whether the step in progress ends in a log line."""
        step, every = self.state.global_step + 1, self.state.logging_steps or 0
        if step == 1 and self.args.logging_first_step:
            return True
        if self.args.logging_strategy == IntervalStrategy.EPOCH:
            return bool(self.accelerator.gradient_state.end_of_dataloader)  # every batch of it has been fetched
        return self.args.logging_strategy == IntervalStrategy.STEPS and every > 0 and step % every == 0

    # ---- evaluation ----

    def evaluate(self, eval_dataset: Any = None, *args: Any, **options: Any) -> dict[str, float]:
        with self._monitor.paused():
            return super().evaluate(self._prepared(eval_dataset, "eval"), *args, **options)

    def predict(self, test_dataset: Any, *args: Any, **options: Any) -> PredictionOutput:
        with self._monitor.paused():
            return super().predict(self._prepared(test_dataset, "test"), *args, **options)

    def _prepared(self, dataset: Any, name: str) -> Any:
        """A data set of any form; None and a name stand for those that the trainer has."""
        if dataset is None or isinstance(dataset, str):
            return dataset
        return self._prepare_dataset(dataset, None, self.args, packs_evaluation(self.args), None, name)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the trainer's, with the loss and the metrics of the whole set."""
        self._evaluation = Evaluation()
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            alpha = self._alpha.now(self._progress(), self.args.device)
            found = self._evaluation.read(self._loss, self.alignment.columns, alpha)
        finally:
            self._evaluation = None
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach()
        if self._evaluation is not None:
            self._evaluation.add_loss(loss)
        return loss, None, None

    # ---- checkpoints ----

    def create_model_card(self, *args: Any, **options: Any) -> None:
        super().create_model_card(*args, **options)
        path = Path(self.args.output_dir or ".") / "README.md"
        if self.is_world_process_zero() and path.is_file():
            model_card.add_section(path, self.alignment)

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
        if (best := self.state.best_model_checkpoint) and checkpoint.is_in(best):  # else the trainer has said that it
            self._read_checkpoint(best)  # cannot find it, and a run that is complete is not thrown away for that

    def _read_checkpoint(self, folder: str) -> None:
        if not self.is_fsdp_enabled:
            checkpoint.read(folder, self._head, self._alpha)
        elif checkpoint.is_in(folder):  # the head is part of the sharded state there
            checkpoint.read(folder, None, self._alpha)

    # ---- small matters ----

    def _finish(self, update: Update, output: AlignmentOutput, pairs: dict[str, Tensor]) -> None:
        """After a micro-batch: alpha learns from the whole update's losses once it is complete."""
        assert output.logp is not None
        if self._alpha.schedule == "loss_ratio":
            update.add_losses(-output.logp, pairs["synthetic"])
            if update.last:
                self._alpha.observe(update.mean_losses())
        update.position += 1
        if update.position == update.micro_batches:
            self._update = None

    def _progress(self) -> float:
        return self.state.global_step / max(self.state.max_steps, 1)
