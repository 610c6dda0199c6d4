"""lm_eval, data_juicer and vllm: other tools' log-likelihoods of given token ids."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from main_align.models.load import LoadedModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .peers import Absent, import_peer

Pieces = Sequence[tuple[list[int], list[int]]]
"""(context, continuation) as token ids."""
LM_EVAL_BATCH = 8  # as in its README


def lm_eval(loaded: LoadedModel) -> Callable[[Pieces], list[float]]:
    """Return lm-evaluation-harness' log-likelihoods of continuations, in nats.

    `HFLM.loglikelihood` takes texts and calls the function used here with their token ids.
    """
    huggingface = import_peer("lm_eval.models.huggingface")
    model = huggingface.HFLM(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=LM_EVAL_BATCH
    )

    def run(pieces: Pieces) -> list[float]:
        requests = [(("", ""), context, continuation) for context, continuation in pieces]
        return [logp for logp, _ in model._loglikelihood_tokens(requests, disable_tqdm=True)]

    return run


def data_juicer(loaded: LoadedModel) -> Callable[[Pieces], list[float]]:
    """Return data-juicer's IFD of (prompt, response).

    The operator joins texts with a space and tokenises the whole, without a chat template. For equal token ids, the
    texts are the ids in decimal, and the model's tokenizer is one that reads them.
    """
    _install_nothing()
    level = logging.getLogger().level
    module = import_peer("data_juicer.ops.filter.instruction_following_difficulty_filter")
    logging.getLogger().setLevel(level)  # it logs everything from its import on
    stats = import_peer("data_juicer.utils.constant")
    with tempfile.TemporaryDirectory() as folder:
        loaded.model.save_pretrained(folder)
        _decimal_tokenizer(int(loaded.model.config.vocab_size)).save_pretrained(folder)
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        operator = module.InstructionFollowingDifficultyFilter(
            hf_model=str(Path(folder)), model_params={"dtype": dtype}, accelerator=loaded.model.device.type
        )
        import_peer("data_juicer.utils.model_utils").get_model(operator.model_key, None, operator.use_cuda())

    def run(pieces: Pieces) -> list[float]:
        out = []
        for prompt, response in pieces:
            messages = [
                {"role": role, "content": " ".join(map(str, ids))}
                for role, ids in (("user", prompt), ("assistant", response))
            ]
            sample: dict[str, Any] = {"messages": messages, stats.Fields.stats: {}}
            done = operator.compute_stats_single(sample)
            out.append(done[stats.Fields.stats][stats.StatsKeys.ifd_score])
        return out

    return run


def _install_nothing() -> None:
    """Keep data-juicer from installing what it lacks into the environment while it is measured."""

    def refuse(package: str, *arguments: Any) -> None:
        raise Absent(f"{package} is not installed")

    import_peer("data_juicer.utils.lazy_loader").LazyLoader._install_package = staticmethod(refuse)


def _decimal_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer for token ids in decimal, separated by spaces."""
    core = Tokenizer(models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token="0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def vllm() -> Any:
    """Raise Absent: its wheels bring a torch of their own, and the environment's stays as it is."""
    raise Absent("needs a GPU, and a torch of its own version")
