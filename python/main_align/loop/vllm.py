"""The same writing with vLLM, where it is installed. Written from vLLM's documentation and not run here.

vLLM draws by its own sampler: seeds per row fix its result too, but it is not that of `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .generation import Prompt, Sampling, read_off, stop_tokens
from .pairs import Written


class VllmWriter:
    """One vLLM engine for one stage.

    Args:
        model: folder or hub id of the model; with `adapter`, of its base.
        adapter: folder of a LoRA adapter, and its rank.
    """

    def __init__(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        empty: str,
        *,
        dtype: str,
        max_length: int,
        adapter: tuple[Path, int] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.tokenizer, self.sampling, self.empty = tokenizer, sampling, empty
        self.stops = stop_tokens(tokenizer)
        self.engine = LLM(
            model=model,
            dtype=dtype,
            seed=sampling.seed,
            max_model_len=max_length,
            trust_remote_code=trust_remote_code,
            enable_lora=adapter is not None,
            max_lora_rank=adapter[1] if adapter else None,
        )
        self.lora = LoRARequest("written", 1, str(adapter[0])) if adapter else None

    def write(self, batch: Sequence[Prompt]) -> list[Written]:
        """What the model writes after each prompt; vLLM makes batches of its own inside this one."""
        made = self.engine.generate(
            [{"prompt_token_ids": prompt.ids} for prompt in batch],
            [self._parameters(prompt.row) for prompt in batch],
            lora_request=self.lora,
            use_tqdm=False,
        )
        return [read_off(item.outputs[0].token_ids, self.tokenizer, set(self.stops), self.empty) for item in made]

    def _parameters(self, row: int) -> Any:
        from vllm import SamplingParams

        s = self.sampling
        return SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            max_tokens=s.max_new_tokens,
            seed=(s.seed * 1_000_003 + row) % 2**31,
            stop_token_ids=self.stops,
            skip_special_tokens=False,
            detokenize=False,
        )
