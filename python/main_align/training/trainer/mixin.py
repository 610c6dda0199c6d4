"""AlignmentMixin: mutual alignment for `transformers.Trainer`, TRL's `SFTTrainer` or a subclass of either.

One micro-batch is one packed sequence and one forward of the backbone. A step's loss is divided by counts over all its
micro-batches and processes, so its gradient does not depend on how the batch is split.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, TrainOutput, has_length

from ...errors import UserError
from ...models.devices import warn_if_slow
from ...models.load import unwrap_peft
from ...models.projection_heads import AlignmentHead
from ..config import AlignmentArguments, MutualAlignmentConfig
from ..dataset.preparation import Preparation, packs_evaluation
from ..dataset.reader import COLUMNS
from ..dataset.whole_stream import WholeStream
from ..distributed import world_size
from ..gradient_cache import GradientCache, cache_gradients, set_rng_state
from ..host_memory import keep_freed_memory
from ..loss import MutualAlignmentLoss
from ..metrics.monitor import Monitor, check_finite
from ..micro_batch import micro_batch_outputs
from ..model import projection
from ..model.hooks import AlignmentOutput, HookedForward
from ..model.setup import set_up
from ..objective import step_loss
from ..step import Step
from ..synthetic_weight import SyntheticWeight
from .checkpoint_mixin import CheckpointMixin
from .evaluation_mixin import EvaluationMixin
from .settings import check_arguments, check_batches, check_optimizer, check_parallelism, check_settings


class AlignmentMixin(EvaluationMixin, CheckpointMixin):
    """Add mutual alignment to a trainer class; put the mixin before it.

    ```python
    class MyTrainer(AlignmentMixin, Trainer): ...


    settings = AlignmentArguments(semantic_weight=0.1)
    MyTrainer(model, args, train_dataset=ds, processing_class=tokenizer, alignment=settings)
    ```

    Data sets have prompt and completion, instruction and response, messages (text or turns), or token ids with a mask
    of the response; docs/training.md lists the forms.

    Args:
        model: PreTrainedModel, PeftModel, or the name of a model: a hub id, a folder or "smollm2".
        args: TrainingArguments. Default: `MutualAlignmentConfig()` with SFTTrainer, else `TrainingArguments()`.
        data_collator: must be None; the mixin packs pairs itself.
        train_dataset: datasets.Dataset or IterableDataset of pairs.
        eval_dataset: data set of pairs, or a dict of them by name.
        processing_class: tokenizer. Default: the tokenizer of the model's name.
        alignment: terms and their weights. Default: `args` if it is a MutualAlignmentConfig, else
            `AlignmentArguments()`.
        options: passed to the trainer. Refused: `model_init`, `compute_loss_func`, `compute_metrics`,
            `preprocess_logits_for_metrics` and `formatting_func`.

    Raises:
        UserError: before training, if data, model or options cannot work; it names the row or argument and the remedy.
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
        sft = hasattr(super(), "_prepare_dataset")  # SFTTrainer prepares data sets itself, by calling our override
        args = args or (MutualAlignmentConfig() if sft else TrainingArguments())
        if alignment is not None and isinstance(args, AlignmentArguments):
            raise UserError("args holds the settings of mutual alignment already: leave `alignment` out")
        self.alignment = alignment or (args if isinstance(args, AlignmentArguments) else AlignmentArguments())
        check_settings(args, sft=sft)
        quantization = options.pop("quantization_config", None) if isinstance(model, str) else None
        setup = set_up(model, processing_class, args, self.alignment, quantization)
        if getattr(args, "padding_free", False):
            args.padding_free = False  # sequences are always packed here, and TRL's way has further requirements
        if getattr(args, "loss_type", None) == "chunked_nll":  # the default of TRL before 1.15
            args.loss_type = "nll"  # the same loss; for the other, TRL would replace the head's forward
        if args.include_num_input_tokens_seen == "non_padding":
            args.include_num_input_tokens_seen = "all"  # there is no padding, but the end of a turn may be its token
        args.accelerator_config.dispatch_batches = False  # the default for streams is True
        if args.use_liger_kernel:  # for the layers; its loss would replace the model's forward
            args.liger_kernel_config = {**(args.liger_kernel_config or {}), "fused_linear_cross_entropy": False}
        self._base = unwrap_peft(setup.model)
        projection.detach(self._base)
        for dtype in (self._base.dtype, torch.bfloat16 if args.bf16 else torch.float32):
            warn_if_slow(dtype, args.device)
        self._max_length = setup.max_length
        self._preparation: Preparation | None = None  # set when the first data set is prepared
        self._loss = MutualAlignmentLoss(self.alignment)
        self._synthetic_weight = SyntheticWeight(
            self.alignment.synthetic_weight_schedule, self.alignment.synthetic_weight
        )
        self._step: Step | None = None
        self._unfinished: list[Any] = []  # micro-batches at the end of a stream, too few for a step
        self._monitor = Monitor(self.alignment.columns, duality_gap=self.alignment.duality_gap_weight > 0)
        self._evaluation = None
        if not sft:
            packing = getattr(args, "packing", False)
            train_dataset = self._prepare_dataset(train_dataset, setup.tokenizer, args, packing, None, "train")
            packing = packs_evaluation(args)
            eval_dataset = self._prepare_dataset(eval_dataset, setup.tokenizer, args, packing, None, "eval")
        init_kwargs = getattr(args, "model_init_kwargs", None)
        if isinstance(model, str) and init_kwargs is not None:
            args.model_init_kwargs = None  # used above; SFTTrainer would say that it ignores them
        super().__init__(
            model=setup.model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=setup.tokenizer,
            **options,
        )
        if init_kwargs is not None:
            args.model_init_kwargs = init_kwargs
        assert self._preparation is not None
        self.data_collator = self._preparation.collator
        self.model_accepts_loss_kwargs = True  # tells transformers before 5.19 that the loss is scaled
        check_parallelism(self.accelerator, self.args)
        self._head = None
        if self.alignment.uses_embeddings and self.alignment.projection_dim:
            width = self._base.config.get_text_config().hidden_size
            self._head = AlignmentHead(width, self.alignment.projection_dim)
            projection.attach(self._base, self._head)
        check_optimizer(self.optimizer, self.model if options.get("peft_config") else self._head)
        # transformers divides the noise by the length of the packed row, which grows with the batch
        noise_alpha, self.neftune_noise_alpha = self.neftune_noise_alpha, None
        self._hooked: HookedForward = HookedForward(self._base, self._head, noise_alpha=noise_alpha)

    @property
    def synthetic_weight(self) -> float:
        """α, the current weight of synthetic pairs."""
        return float(self._current_synthetic_weight())

    @property
    def alignment_head(self) -> AlignmentHead | None:
        """The projection heads, or None if pooled states are compared. After training they are no part of the model."""
        return self._head

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        if self._preparation is None:  # by now SFTTrainer has set the tokenizer's chat template and stop token
            self._preparation = Preparation(self._base, processing_class, args, self.alignment, self._max_length)
        if isinstance(dataset, dict):
            if dataset_name != "eval":
                raise UserError(
                    f"the {dataset_name} data set is a dict of data sets ({', '.join(map(str, dataset))}): pass one of "
                    "them, or join them with datasets.concatenate_datasets"
                )
            return {
                name: self._prepare_dataset(part, processing_class, args, packing, formatting_func, name)
                for name, part in dataset.items()
            }
        return self._preparation.prepare(dataset, args, packing=packing, name=dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = list(COLUMNS)

    def train(self, *args: Any, **options: Any) -> TrainOutput:
        """Override to make the heads a part of the model while it trains, and leave it as it was."""
        if self.args.eval_strategy != IntervalStrategy.NO and not self.accelerator.even_batches:
            for name in self.eval_dataset if isinstance(self.eval_dataset, dict) else [None]:
                self.get_eval_dataloader(name)  # raises now what the first evaluation would
        self._monitor.stop_clock()
        self._unfinished = []
        if self._head is not None:
            projection.attach(self._base, self._head)
        try:
            with keep_freed_memory(self.args.device.type):
                return super().train(*args, **options)
        finally:
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # their checkpoints are of all that they wrap
                projection.detach(self._base)

    def get_train_dataloader(self) -> Any:
        """Override to refuse a data set that gives no batch; transformers would train nothing and report success."""
        loader = super().get_train_dataloader()
        if self.args.dataloader_drop_last and has_length(loader) and not len(loader):
            rows = len(self.train_dataset)  # type: ignore[arg-type]
            size, processes = self.args.train_batch_size, self.args.world_size
            raise UserError(
                f"dataloader_drop_last=True leaves nothing to train: {rows:,} rows are fewer than a batch of {size} "
                f"for each of {processes} processes. Set it to False, or lower per_device_train_batch_size"
            )
        return loader

    def _get_dataloader(self, dataset: Any, *args: Any, **options: Any) -> Any:
        """Override to give every process as many batches: each batch gathers over the processes."""
        if isinstance(dataset, IterableDataset) and world_size() > 1:
            dataset = WholeStream(dataset)
        loader = super()._get_dataloader(dataset, *args, **options)
        check_batches(loader)
        return loader

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Override to count the step's tokens and pairs over all its micro-batches and processes.

        Micro-batches at the end of a stream that are too few for a step begin the first step of its next pass.
        """
        more, _ = super().get_batch_samples(epoch_iterator, num_batches - len(self._unfinished), device)
        batches, self._unfinished = self._unfinished + more, []
        if len(batches) < num_batches:  # of a stream, which has no length: transformers would not end the step here
            batches, self._unfinished = [], batches
        if self._unfinished and not self.state.global_step:
            raise UserError(
                f"the stream has {len(self._unfinished)} batches, which is less than a step of "
                f"gradient_accumulation_steps={num_batches}: lower it or per_device_train_batch_size"
            )
        if not batches and not self.state.global_step:
            raise UserError(
                "the train data set gave no pair: the stream has no rows, or over_length='drop' left all of them out"
            )
        self._monitor.begin_step()
        self._step = Step.count(batches, self.args.device) if batches else None
        return batches, None if self._step is None else self._step.tokens.sum()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Override to return this micro-batch's contribution to the step's loss (objective.py)."""
        training, pairs, alignment = model.training, inputs["pairs"], self._loss.alignment
        step = self._step if training and self._step is not None else Step.count([inputs], self.args.device)
        synthetic_weight = self._current_synthetic_weight()
        if self._contrasts_step(step) and step.gradient_cache is None:
            step.gradient_cache = self._cache_gradients(model, step)
        if step.gradient_cache is not None:
            set_rng_state(step.gradient_cache.rng_states[step.position], self.args.device)
        token_loss_weights = step.token_loss_weights(pairs, alignment, synthetic_weight)
        # an evaluation logs the likelihood of every token, also of those with weight 0 in the loss
        weights = token_loss_weights if training else torch.ones_like(token_loss_weights)
        output, states = self._hooked.forward(
            model, inputs, weights=weights, differentiable_logp=alignment.duality_gap_weight > 0
        )
        assert output.lm_loss is not None
        assert output.logp is not None
        if not training:
            output.lm_loss = -(output.logp * token_loss_weights).sum().to(output.lm_loss.dtype)
        outputs, contrast = micro_batch_outputs(output, pairs, step, self._loss, contrast=self._evaluation is None)
        loss, contributions = step_loss(outputs, step.pairs, alignment)
        check_finite(loss, contributions, output, pairs, self.state.global_step + 1)
        if training:
            self._monitor.measure(step, pairs, output.logp, token_loss_weights, synthetic_weight)
            self._monitor.measure_loss(step, contributions, output)
            if contrast is not None:
                self._monitor.measure_contrast(contrast)
            # states do not under a frozen backbone, and DeepSpeed takes every backward for the step's
            if states.requires_grad and self._is_logged() and not self.is_deepspeed_enabled:
                self._monitor.measure_gradients(step, contributions, states, pairs)
            self._finish(step, output, pairs)
        elif self._evaluation is not None:
            self._evaluation.add(output, pairs, loss)
        return (loss, output) if return_outputs else loss

    def _finish(self, step: Step, output: AlignmentOutput, pairs: dict[str, Tensor]) -> None:
        """Advance to the next micro-batch; after the last one, update the synthetic weight's running means."""
        assert output.logp is not None
        if self._synthetic_weight.schedule == "loss_ratio":
            step.add_nll(-output.logp, pairs["synthetic"])
            if step.is_last:
                self._synthetic_weight.observe(step.mean_nll())
        step.position += 1
        if step.position == step.micro_batches:
            self._step = None

    def _contrasts_step(self, step: Step) -> bool:
        """Tell whether pairs of different micro-batches are contrasted with each other."""
        return step.micro_batches > 1 and self.alignment.uses_embeddings and self.alignment.contrast_across_accumulation

    def _cache_gradients(self, model: nn.Module, step: Step) -> GradientCache:
        def embed(batch: dict[str, Any]) -> tuple[AlignmentOutput, Tensor]:
            batch = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                output, _ = self._hooked.forward(model, batch, weights=None)
            return output, batch["pairs"]["group"]

        return cache_gradients(step.batches, embed, self._loss, self.args.device)

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Override to add the metrics since the last log line."""
        logs.update(self._monitor.read())
        super().log(logs, *args, **options)

    def _is_logged(self) -> bool:
        """Tell whether the step in progress ends with a log line."""
        step, interval = self.state.global_step + 1, self.state.logging_steps or 0
        if step == 1 and self.args.logging_first_step:
            return True
        if self.args.logging_strategy == IntervalStrategy.EPOCH:
            return bool(self.accelerator.gradient_state.end_of_dataloader)  # all batches of the epoch are fetched
        return self.args.logging_strategy == IntervalStrategy.STEPS and interval > 0 and step % interval == 0
