"""VllmGenerator: generate with vLLM. Written from vLLM's documentation and never run.

vLLM has its own sampler. A seed per row makes its results reproducible, but they differ from those of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .generation import Prompt, Sampling, decode_generation, stop_token_ids
from .model_pair import ModelInfo, VllmSource
from .pairs import Generation


class VllmGenerator:
    """Run one vLLM engine for one stage.

    Args:
        source: files of the model and its adapter.
        info: tokenizer and context of the model.
        sampling: sampling settings.
        empty_status: status of a text without characters.
        dtype: dtype of the model.
        trust_remote_code: run code that comes with the model.
    """

    def __init__(
        self,
        source: VllmSource,
        info: ModelInfo,
        sampling: Sampling,
        empty_status: str,
        *,
        dtype: str,
        trust_remote_code: bool = False,
    ) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.tokenizer, self.sampling, self.empty_status = info.tokenizer, sampling, empty_status
        self.stops = stop_token_ids(info.tokenizer)
        self.engine = LLM(
            model=source.model,
            dtype=dtype,
            seed=sampling.seed,
            max_model_len=info.context,
            trust_remote_code=trust_remote_code,
            enable_lora=source.adapter is not None,
            max_lora_rank=source.lora_rank,
        )
        self.lora = None if source.adapter is None else LoRARequest("adapter", 1, str(source.adapter))

    def generate(self, batch: Sequence[Prompt]) -> list[Generation]:
        """Generate one text per prompt; vLLM splits the batch as it likes."""
        outputs = self.engine.generate(
            [{"prompt_token_ids": prompt.ids} for prompt in batch],
            [self._parameters(prompt.row) for prompt in batch],
            lora_request=self.lora,
            use_tqdm=False,
        )
        texts = [item.outputs[0].token_ids for item in outputs]
        return [decode_generation(ids, self.tokenizer, set(self.stops), self.empty_status) for ids in texts]

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
