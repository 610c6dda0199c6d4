"""answer: the command `main-align answer`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .common import Dtype, hide_library_progress

# Optional[...] below, not X | None: typer evaluates these annotations on every supported Python.
# ruff: noqa: UP045


class Benchmark(str, Enum):
    """A key of benchmarks.FORMATS; a test keeps the two equal."""

    alpaca_eval = "alpaca_eval"
    mt_bench = "mt_bench"


def answer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, LoRA adapter, or smollm2.")],
    questions: Annotated[
        str,
        typer.Argument(metavar="QUESTIONS", help="Question file: AlpacaEval's .json, or MT-Bench's question.jsonl."),
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--output", help="Answer file; NAME.json or model_answer/NAME.jsonl names the model NAME."),
    ],
    benchmark: Annotated[Benchmark, typer.Option("--format", help="Benchmark whose judge reads the answers.")],
    temperature: Annotated[
        Optional[float],
        typer.Option(
            min=0, help="Sampling temperature; 0 is greedy. Default: 0.7, in mt_bench as FastChat sets it by category."
        ),
    ] = None,
    max_new_tokens: Annotated[
        Optional[int], typer.Option(min=1, help="Longest answer in tokens. Default: alpaca_eval 2048, mt_bench 1024.")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Number of tokens per batch, new ones included. Lower it to save memory.")
    ] = 16384,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    dtype: Annotated[
        Dtype, typer.Option(help="Dtype of the model. auto picks the faster of bfloat16 and float32.")
    ] = Dtype.auto,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over and overwrite unfinished or finished work.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Let MODEL answer the questions of AlpacaEval or MT-Bench, in the file that the judge reads.

    An answer depends on the seed and on its question, not on its batch. An answer without an end within
    --max-new-tokens is kept, and OUTPUT.manifest.json lists it. After an interruption, the same command resumes the
    run. docs/evaluate.md shows the judges' commands.

    **Examples**

    `main-align answer run/07-round2-train-forward/forward alpaca_eval.json -o outputs/mine.json --format alpaca_eval`

    `main-align answer ./my-llama question.jsonl -o model_answer/my-llama.jsonl --format mt_bench`

    `accelerate launch --multi_gpu -m main_align answer ./my-llama question.jsonl -o my.jsonl --format mt_bench`
    """
    from .progress_bar import ProgressBar

    with ProgressBar() as progress_bar:
        hide_library_progress()
        from ..evaluation.answer import AnswerSettings, answer_file
        from ..loop.distributed import Processes

        if Processes().is_main:
            progress_bar.log(f"loading {model} ...")
        settings = AnswerSettings(
            temperature, max_new_tokens, batch_tokens, seed, dtype.value, trust_remote_code=trust_remote_code
        )
        manifest = answer_file(
            model,
            questions,
            out,
            answer_format=benchmark.value,
            settings=settings,
            restart=restart,
            on_progress=progress_bar,
        )
    processes = Processes()
    if processes.is_main:
        _show(manifest, out, was_complete=not progress_bar.used)
    processes.shutdown()


def _show(manifest: dict[str, Any], out: Path, *, was_complete: bool) -> None:
    """Print the counts, and each answer without an end."""
    from rich.console import Console

    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if was_complete:
        say(f"{out} was already complete for these questions and this model; --restart answers again")
    for each in manifest["unfinished"]:
        say(f"question {each['question']}, turn {each['turn']}: {each['status']}, {each['reason']}")
    counts = ", ".join(f"{count} {status}" for status, count in manifest["counts"].items())
    speed = manifest["throughput"]["tokens_per_second"]
    say(f"{manifest['questions']} questions: {counts}; {manifest['tokens']:,} tokens, {speed:,.0f} tokens/s")
    say(f"answers: {out}")
