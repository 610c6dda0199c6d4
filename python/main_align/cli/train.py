"""train: the command `main-align train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .common import Dtype, hide_library_progress

# Optional[...] below, not X | None: typer evaluates these annotations on every supported Python.
# ruff: noqa: UP045


def train(
    config: Annotated[
        Optional[Path],
        typer.Argument(metavar="[CONFIG]", help="Settings file: .yaml, .json or .toml. Options override it."),
    ] = None,
    seed_pairs: Annotated[
        Optional[str], typer.Option(help="Seed pairs, in any format that main-align score reads.")
    ] = None,
    out: Annotated[Optional[Path], typer.Option("-o", "--output", help="Folder of the run.")] = None,
    unpaired_responses: Annotated[
        Optional[str], typer.Option(help="Responses without instructions; the last stage generates instructions.")
    ] = None,
    eval_pairs: Annotated[
        Optional[str], typer.Option(help="Pairs for evaluation only. Default: the seed pairs are evaluated.")
    ] = None,
    model: Annotated[Optional[str], typer.Option(help="Hub id, local folder, or smollm2. Default: smollm2.")] = None,
    reverse_model: Annotated[
        Optional[str], typer.Option(help="Initial model of the reverse direction. Needs --full.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Train two full models instead of two LoRA adapters on one model.")
    ] = False,
    dtype: Annotated[
        Optional[Dtype], typer.Option(help="Dtype of the model. auto picks the faster of bfloat16 and float32.")
    ] = None,
    rounds: Annotated[Optional[int], typer.Option(help="Rounds of generation and training. Default: 2.")] = None,
    warmup_epochs: Annotated[
        Optional[float], typer.Option(help="Epochs on the seed pairs before round 1, per direction. Default: 1.")
    ] = None,
    max_length: Annotated[
        Optional[int], typer.Option(help="Maximum training sequence length in tokens. Default: 1024.")
    ] = None,
    max_new_tokens: Annotated[
        Optional[int], typer.Option(help="Maximum length of a generated text in tokens. Default: 256.")
    ] = None,
    filter_by: Annotated[
        Optional[str], typer.Option(help="forward_nll (as in the paper) or mutual. Default: forward_nll.")
    ] = None,
    keep: Annotated[
        Optional[float], typer.Option(help="Fraction of the generated pairs to keep. Default: 0.5.")
    ] = None,
    seed: Annotated[Optional[int], typer.Option(help="Random seed. Default: 0.")] = None,
    assignments: Annotated[
        Optional[list[str]],
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting; training.NAME for a trainer setting."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over and delete the run in the output folder.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Run MAIN's loop: train two directions on each other's output and keep the best new pairs.

    Both directions warm up on the seed pairs. In each round the reverse model generates instructions for the seed
    responses, and the forward model trains on seed pairs and generated pairs. Then the roles are swapped. At the
    end the reverse model generates instructions for --unpaired-responses, and the best pairs are kept.

    Every finished stage is saved in the output folder, and the same command resumes an interrupted run. report.json
    and report.png show the losses, α, nats per token after each round, and the scores.

    **Examples**

    `main-align train --seed-pairs pairs.jsonl -o run --unpaired-responses responses.jsonl`

    `main-align train loop.yaml --rounds 3 --set training.learning_rate=5e-5`

    `accelerate launch --multi_gpu -m main_align train loop.yaml --model ./my-llama`
    """
    from ..loop.config_file import read_config
    from .progress_bar import ProgressBar

    options: dict[str, Any] = {
        "seed_pairs": seed_pairs,
        "output_dir": None if out is None else str(out),
        "unpaired_responses": unpaired_responses,
        "eval_pairs": eval_pairs,
        "model": model,
        "reverse_model": reverse_model,
        "use_peft": False if full else None,
        "dtype": dtype and dtype.value,
        "rounds": rounds,
        "warmup_epochs": warmup_epochs,
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
        "filter_by": filter_by,
        "keep": keep,
        "seed": seed,
        "trust_remote_code": trust_remote_code or None,
    }
    set_options = {name: value for name, value in options.items() if value is not None}
    settings = read_config(config, set_options, assignments or [])
    with ProgressBar() as progress_bar:
        hide_library_progress()
        from datasets import disable_progress_bars

        disable_progress_bars()
        from ..loop import MutualAlignmentLoop

        loop = MutualAlignmentLoop(settings, restart=restart, on_progress=progress_bar, log=progress_bar.log)
        try:
            report = loop.run()
        except KeyboardInterrupt:
            progress_bar.log(f"Finished stages are saved in {settings.output_dir}; run again to resume.")
            raise
    if loop.processes.is_main:
        _show(report, Path(settings.output_dir))
    loop.processes.shutdown()


def _show(report: dict[str, Any], run_dir: Path) -> None:
    from rich.console import Console

    from .summary import rounds_table

    console = Console()
    console.print(rounds_table(report["rounds"]), "")
    models = "\n".join(f"{direction} model: {path}" for direction, path in report["models"].items())
    lines = [models]
    if "filter" in report:
        found = report["filter"]
        lines.append(f"kept pairs: {report['kept']} ({found['kept']:,} of {found['rows']:,} by {found['filter_by']})")
        lines.append(f"dropped pairs: {report['dropped']}")
    if report["resumed"]:
        times = ", ".join(session["started"] for session in report["sessions"])
        lines.append(f"resumed; started at {times}")
    text = "\n".join([*lines, f"report: {run_dir / 'report.json'}"])
    console.print(text, highlight=False, markup=False, soft_wrap=True)
