"""The command line: `main-align score`, `filter`, `train` and `doctor`.

Heavy libraries are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..data.formats.dialects import DIALECTS
from ..data.formats.record import INPUTS, Fields
from ..data.read import ENDINGS
from ..data.sources.streams import COMPRESSED
from ..errors import UserError

# Optional[...] below, not X | None: typer reads these annotations at run time on every Python.
# ruff: noqa: UP045

app = typer.Typer(
    name="main-align",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Dtype(str, Enum):
    """Number formats of the model; auto is bfloat16 where the device has instructions for it, else float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Side(str, Enum):
    """The two responses of a preference pair."""

    chosen = "chosen"
    rejected = "rejected"


def _version(wanted: bool) -> None:
    if wanted:
        from ..environment import (
            installed,
        )

        typer.echo(f"main-align {installed('main-kernels')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Score instruction-response pairs by mutual alignment, keep the best, and train on both directions."""


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Exit 1 with the message of a user's error, and 130 on Ctrl-C; a bug keeps its traceback."""
    try:
        yield
    except UserError as error:
        _stop(str(error), 1)
    except ModuleNotFoundError as error:
        extra = "train" if error.name in ("trl", "peft") else "hf"
        _stop(f"{error}. Install what is missing: pip install 'main-kernels[{extra}]'", 1)
    except OSError as error:
        _stop(f"{error}. Check the path, its permissions and the free space.", 1)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


def _stop(message: str, code: int) -> None:
    typer.echo(f"main-align: {message}", err=True)
    raise typer.Exit(code)


FORMS = "**Forms** (the first that fits is read)\n\n" + "\n\n".join(
    f"- {dialect.form}: {dialect.seen_in}" for dialect in DIALECTS
)


@app.command(no_args_is_help=True, epilog=FORMS)
def score(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help=f"{', '.join(ENDINGS)}, text also with {', '.join(COMPRESSED)}; `-`, a `datasets` folder, a hub id.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Score file: .parquet, .jsonl or .csv.")],
    model: Annotated[str, typer.Option(help="Hub id, local folder, or smollm2 (comes by package index).")] = "smollm2",
    revision: Annotated[Optional[str], typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Weights and states; auto: the fastest, bfloat16 or float32.")
    ] = Dtype.auto,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    max_length: Annotated[
        Optional[int],
        typer.Option(min=1, help="Longest sequence, in tokens. Default: the model's own limit."),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut longer pairs instead of leaving them unscored.")
    ] = False,
    bank: Annotated[int, typer.Option(min=1, help="Reference pairs for semantic and structural.")] = 16384,
    seed: Annotated[int, typer.Option(help="Seed of the bank's sample.")] = 0,
    heads: Annotated[
        Optional[str],
        typer.Option(help="Trained model whose projection heads semantic and structural compare pairs through."),
    ] = None,
    pack_tokens: Annotated[
        Optional[int],
        typer.Option(min=1, help="Tokens in one forward pass. Lower it to save memory."),
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Pairs sorted by length together, in pairs.")] = 4096,
    plot: Annotated[Optional[Path], typer.Option(help="Also draw histograms: .png, .svg or .pdf.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over, overwriting unfinished or finished work.")
    ] = False,
    split: Annotated[Optional[str], typer.Option(help="Split of a `datasets` source.")] = None,
    config: Annotated[Optional[str], typer.Option(help="Configuration of a `datasets` source.")] = None,
    instruction_field: Annotated[
        Optional[str],
        typer.Option(help="Field of the instruction, nested ones as data.question; with --response-field."),
    ] = None,
    response_field: Annotated[
        Optional[str], typer.Option(help="Field of the response; with --instruction-field.")
    ] = None,
    input_field: Annotated[
        Optional[str], typer.Option(help=f"Field of a text that ends the instruction. Default: {', '.join(INPUTS)}.")
    ] = None,
    system_field: Annotated[
        Optional[str], typer.Option(help="Field of the system prompt. Default: system, system_prompt and the like.")
    ] = None,
    side: Annotated[Side, typer.Option(help="Response of a preference pair that is scored.")] = Side.chosen,
    id_field: Annotated[Optional[str], typer.Option(help="Field of the row's label. Default: id.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Score every pair of INPUT: likelihoods both ways, mutual, semantic and structural alignment.

    Likelihoods and PMI are in nats per token, mutual in nats per √token; OUT.manifest.json defines
    every column. A row that cannot be scored keeps its id and gets a status, a reason and nulls; exit
    code 1 where no row can be scored. Killed or interrupted, the same command resumes where it was.

    Forms of rows that need no options are listed below. `input` and `context` end the instruction; a system
    prompt and a history stand before the pair, given to the model and not scored.

    **Examples**

    `main-align score pairs.jsonl -o scores.parquet`

    `main-align score alpaca.json -o scores.csv --model ./my-llama --dtype bfloat16`

    `main-align score qa.csv -o qa.parquet --instruction-field question --response-field answer`
    """
    with _plain_errors():
        from .commands import run_score

        options = {"revision": revision, "max_length": max_length, "truncate": truncate}
        options |= {"bank": bank, "seed": seed, "trust_remote_code": trust_remote_code}
        options |= {"heads": heads}
        if pack_tokens is not None:
            options["pack_tokens"] = pack_tokens
        run_score(
            source,
            out,
            scorer={"model": model, "dtype": dtype.value, "device": device, **options},
            fields=Fields(instruction_field, response_field, id_field, input_field, system_field, side.value),
            split=split,
            config=config,
            window=window,
            restart=restart,
            plot=plot,
        )


@app.command("filter", no_args_is_help=True)
def filter_command(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="What main-align score wrote.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Kept rows: .jsonl, .parquet or .csv.")],
    by: Annotated[
        str,
        typer.Option(help="A numeric column, or forward_nll (nll_y_given_x), reverse_nll (nll_x_given_y)."),
    ] = "mutual",
    keep: Annotated[Optional[float], typer.Option(help="Share of the scored rows to keep, 0 to 1.")] = None,
    top: Annotated[Optional[int], typer.Option(help="Number of rows to keep.")] = None,
    minimum: Annotated[
        Optional[float],
        typer.Option("--min", help="Lowest value kept, in the column's unit."),
    ] = None,
    maximum: Annotated[
        Optional[float],
        typer.Option("--max", help="Highest value kept, in the column's unit."),
    ] = None,
    source: Annotated[
        Optional[str],
        typer.Option("--input", help="The scored data set. Default: found through the manifest."),
    ] = None,
    scores_only: Annotated[
        bool, typer.Option("--scores-only", help="Write the score rows instead of the input's.")
    ] = False,
    plot: Annotated[Optional[Path], typer.Option(help="Draw histograms with the limit: .png, .svg or .pdf.")] = None,
) -> None:
    """Keep the best rows of a scored data set, in their own fields with the scores added.

    Give --keep or --top for the best rows, --min and --max for a range of values, or both: the best within
    the range. Lower is better for forward_nll, reverse_nll and the other nll columns, ifd, r_ifd,
    duality_gap and copy_overlap; higher is better for everything else. Rows without a score are never
    kept. Ties go to the earlier row, and rows stay in input order. A score column whose name the input
    already has is written as main_NAME.

    **Examples**

    `main-align filter scores.parquet -o best.jsonl --keep 0.5`

    `main-align filter scores.parquet -o best.jsonl --by forward_nll --max 2.5`

    `main-align filter scores.parquet -o hard.jsonl --by ifd --min 0.8 --max 1`

    `main-align filter scores.parquet -o top.parquet --by semantic --top 10000 --plot kept.png`
    """
    with _plain_errors():
        from .commands import run_filter

        limits: dict[str, Any] = {"keep": keep, "top": top, "min": minimum, "max": maximum}
        run_filter(scores, out, by, limits, source=source, scores_only=scores_only, plot=plot)


@app.command(no_args_is_help=True)
def train(
    config: Annotated[
        Optional[Path],
        typer.Argument(metavar="[CONFIG]", help="Settings: .yaml, .json or .toml. Options below override it."),
    ] = None,
    seeds: Annotated[Optional[str], typer.Option(help="Seed pairs, in any form main-align score reads.")] = None,
    out: Annotated[Optional[Path], typer.Option("-o", "--output", help="Folder of the run.")] = None,
    unlabelled: Annotated[
        Optional[str], typer.Option(help="Responses without instructions, to be given some at the end.")
    ] = None,
    heldout: Annotated[
        Optional[str], typer.Option(help="Pairs that are not trained on; the report's likelihoods are theirs.")
    ] = None,
    model: Annotated[Optional[str], typer.Option(help="Hub id, local folder, or smollm2. Default: smollm2.")] = None,
    reverse_model: Annotated[
        Optional[str], typer.Option(help="Start the reverse direction from this one; with --full.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Train two full models instead of two LoRA adapters on one.")
    ] = False,
    dtype: Annotated[Optional[Dtype], typer.Option(help="auto: the fastest, bfloat16 or float32.")] = None,
    rounds: Annotated[Optional[int], typer.Option(help="Rounds of synthesising and training. Default: 2.")] = None,
    warmup_epochs: Annotated[
        Optional[float], typer.Option(help="Epochs on the seeds before round 1, both directions. Default: 1.")
    ] = None,
    max_length: Annotated[Optional[int], typer.Option(help="Longest training sequence, tokens. Default: 1024.")] = None,
    max_new_tokens: Annotated[Optional[int], typer.Option(help="Longest written text, tokens. Default: 256.")] = None,
    criterion: Annotated[
        Optional[str], typer.Option(help="forward_nll (the paper's) or mutual. Default: forward_nll.")
    ] = None,
    keep: Annotated[Optional[float], typer.Option(help="Share of the augmented pairs kept. Default: 0.5.")] = None,
    seed: Annotated[Optional[int], typer.Option(help="Fixes the result. Default: 0.")] = None,
    assignments: Annotated[
        Optional[list[str]],
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting; training.NAME for one of the trainer's."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over, throwing away the run that the folder holds.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Run MAIN's loop: two directions that train each other, then the pairs on which both agree.

    Both directions warm up on the seeds. In each round the reverse model writes instructions for the
    seed responses and the forward model trains on seeds and written pairs, then the other way round.
    At the end the reverse model writes instructions for --unlabelled responses, and the best are kept.

    Every stage leaves a folder in the output folder; the same command resumes where it was killed.
    report.json and report.png show losses and alpha, nats per token after each round, and the scores.

    **Examples**

    `main-align train --seeds pairs.jsonl -o run --unlabelled responses.jsonl`

    `main-align train loop.yaml --rounds 3 --set training.learning_rate=5e-5`

    `accelerate launch --multi_gpu -m main_align train loop.yaml --model ./my-llama`
    """
    with _plain_errors():
        from .commands import run_train

        given: dict[str, Any] = {"seeds": seeds, "unlabelled": unlabelled, "heldout": heldout, "model": model}
        given |= {"output_dir": None if out is None else str(out), "reverse_model": reverse_model}
        given |= {"dtype": dtype and dtype.value, "rounds": rounds, "warmup_epochs": warmup_epochs, "seed": seed}
        given |= {"max_length": max_length, "max_new_tokens": max_new_tokens, "criterion": criterion, "keep": keep}
        given |= {"use_peft": False if full else None, "trust_remote_code": trust_remote_code or None}
        given = {name: value for name, value in given.items() if value is not None}
        run_train(config, given, assignments or [], restart=restart)


@app.command()
def doctor() -> None:
    """Say which backend serves what and why, what is installed, and what to do about what lacks.

    Exits with 1 where scoring with the default model cannot work.

    **Example**

    `main-align doctor`
    """
    with _plain_errors():
        from .doctor import run_doctor

        sys.exit(run_doctor())


if __name__ == "__main__":
    from main_align.__main__ import main

    main()
