"""run_generate_stage: generate instructions for responses, or responses to instructions.

Each generated batch goes to a journal in the stage's folder, so a stage that was killed resumes after its last batch.
When all batches are finished, the rows are written to pairs.jsonl in input order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.atomic import atomic_write
from ..data.pairs import Pair
from ..data.write import to_json
from ..errors import UserError
from .batch_journal import generate_batches, read_generations
from .config import Direction, LoopConfig
from .context import LoopContext
from .distributed import Processes
from .generation import Generator, Prompt, Sampling, TransformersGenerator, make_batches, make_prompts
from .pairs import Generation, excerpt, format_counts, generation_row
from .plan import Stage

PAIRS = "pairs.jsonl"


def run_generate_stage(context: LoopContext, stage: Stage, work_dir: Path) -> dict[str, Any]:
    """Generate the missing side of all rows.

    Args:
        context: state of the run.
        stage: a stage with the work "generate" or "augment".
        work_dir: folder of the stage; gets pairs.jsonl.

    Returns:
        Entries of the stage's manifest.

    Raises:
        UserError: no generated text is usable.
    """
    inputs, processes = context.inputs, context.processes
    pair_set = inputs.unpaired_responses if stage.work == "augment" else inputs.seed_pairs
    assert pair_set is not None
    info, max_new_tokens = context.models.info[stage.direction], context.config.max_new_tokens
    prompts, skipped = make_prompts(pair_set.pairs, info.encoder, stage.direction, max_new_tokens, info.context)
    batches = make_batches(prompts, max_new_tokens, context.config.batch_tokens)
    tokens, seconds = generate_batches(
        batches, lambda: make_generator(context, stage), work_dir, processes, context.on_progress, stage.name
    )
    processes.barrier()
    collected = None
    if processes.is_main:
        collected = collect_generations(pair_set.pairs, skipped, batches, stage.direction, work_dir)
        for line in describe_unused(work_dir / PAIRS):
            context.log(f"{stage.name}: {line}")
    counts, total_tokens = processes.broadcast(collected)
    if not counts.get("ok"):
        raise UserError(
            f"{stage.name}: the {stage.direction} model generated no usable text ({format_counts(counts)}; see "
            f"{work_dir / PAIRS}). If texts are unfinished, raise max_new_tokens or warmup_epochs and run again."
        )
    context.log(f"{stage.name}: {format_counts(counts)}")
    speed = round(tokens / max(seconds, 1e-9), 1)
    return {"counts": counts, "tokens": total_tokens, "seconds": round(seconds, 3), "tokens_per_second": speed}


def describe_unused(path: Path) -> list[str]:
    """Return a line for each status that keeps a row out of the training, with the first such row and its text.

    Args:
        path: a file of generated pairs.
    """
    lines: dict[str, str] = {}
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            made = row["generation"]
            if made["status"] != "ok" and made["status"] not in lines:
                text = f": {excerpt(made['text'])}" if made.get("text") else ""
                lines[made["status"]] = f"not used, {made['status']}, such as {row['id']} ({made['reason']}){text}"
    return list(lines.values())


def check_generator(config: LoopConfig, processes: Processes) -> None:
    """Raise UserError if `generator` is vllm and cannot run here."""
    if config.generator != "vllm":
        return
    if find_spec("vllm") is None:
        raise UserError("generator vllm: vLLM is not installed. pip install vllm, or use generator transformers")
    if processes.world_size > 1:
        raise UserError("generator vllm runs in one process: start without accelerate, or use transformers")


def make_generator(context: LoopContext, stage: Stage) -> Generator:
    """Load the stage's model into a generation backend."""
    config, info = context.config, context.models.info[stage.direction]
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, context.stage_seed(stage))
    empty_status = "empty_response" if stage.direction == "forward" else "empty_instruction"
    if not _use_vllm(context):
        model = context.models.load_for_generation(stage)
        return TransformersGenerator(model, info.tokenizer, sampling, empty_status)
    from .vllm import VllmGenerator

    source = context.models.vllm_source(stage)
    trust = config.trust_remote_code
    return VllmGenerator(source, info, sampling, empty_status, dtype=context.dtype, trust_remote_code=trust)


def _use_vllm(context: LoopContext) -> bool:
    if context.config.generator != "auto":
        return context.config.generator == "vllm"
    processes = context.processes
    return processes.world_size == 1 and processes.device.type == "cuda" and find_spec("vllm") is not None


def collect_generations(
    pairs: Sequence[Pair],
    skipped: dict[int, Generation],
    batches: Sequence[Sequence[Prompt]],
    direction: Direction,
    work_dir: Path,
) -> tuple[Counter[str], int]:
    """Write pairs.jsonl from the journals of all processes.

    Args:
        pairs: the input rows.
        skipped: rows without a prompt, by row number.
        batches: the prompts of all processes.
        direction: "forward" generated responses, "reverse" instructions.
        work_dir: folder of the journals; gets pairs.jsonl.

    Returns:
        The number of rows per status, and the generated tokens of all rows.
    """
    generations = skipped | read_generations(work_dir, batches)
    with atomic_write(work_dir / PAIRS) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row, pair in enumerate(pairs):
            file.write(to_json(generation_row(pair, direction, generations[row])) + "\n")
    return Counter(each.status for each in generations.values()), sum(each.tokens for each in generations.values())
