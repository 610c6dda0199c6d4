"""score: the command `main-align score`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..data.fields import Fields
from ..data.formats.conversion import INPUT_FIELDS
from ..data.formats.record_formats import RECORD_FORMATS
from ..data.sources.file_formats import COMPRESSED_ENDINGS, ENDINGS
from ..data.write import OUTPUT_ENDINGS
from ..errors import UserError
from .common import Dtype, hide_library_progress, log_reasons
from .plots import PLOT_ENDINGS

if TYPE_CHECKING:
    from ..data.sources.source import Source
    from .progress_bar import ProgressBar

# Optional[...] below, not X | None: typer evaluates these annotations on every supported Python.
# ruff: noqa: UP045


class PreferenceResponse(str, Enum):
    """The two responses of a preference pair."""

    chosen = "chosen"
    rejected = "rejected"


class Engine(str, Enum):
    """Where the workers of a job run."""

    local = "local"
    ray = "ray"


FORMATS = "**Record formats** (the first match is used)\n\n" + "\n\n".join(
    f"- {record_format.description}: {record_format.used_by}" for record_format in RECORD_FORMATS
)


def score(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help=f"File ({ENDINGS}; text also as {COMPRESSED_ENDINGS}), several files, a folder of files, a quoted "
            "pattern, `-` for standard input, `datasets` folder, or hub id.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--output", help=f"Score file to write: {OUTPUT_ENDINGS}. Or a folder, which gets parts."),
    ],
    model: Annotated[
        str, typer.Option(help="Hub id, local folder, or smollm2 (installed as a Python package).")
    ] = "smollm2",
    revision: Annotated[Optional[str], typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Dtype of the model. auto picks the faster of bfloat16 and float32.")
    ] = Dtype.auto,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    max_length: Annotated[
        Optional[int],
        typer.Option(min=1, help="Maximum sequence length in tokens. Default: the model's limit."),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Truncate longer pairs instead of leaving them unscored.")
    ] = False,
    score_system: Annotated[
        bool, typer.Option("--score-system", help="Score system prompt and instruction together as x.")
    ] = False,
    bank: Annotated[int, typer.Option(min=1, help="Number of reference pairs for semantic and structural.")] = 16384,
    seed: Annotated[int, typer.Option(help="Random seed for sampling the reference pairs.")] = 0,
    heads: Annotated[
        Optional[str],
        typer.Option(help="Trained model whose projection heads embed the pairs for semantic and structural."),
    ] = None,
    batch_tokens: Annotated[
        Optional[int],
        typer.Option(
            min=1, help="Number of tokens per forward pass. Lower it to save memory. Default: 2048, on a GPU 16384."
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the model's layers first, for large inputs on a GPU.")
    ] = False,
    sort_window: Annotated[int, typer.Option(min=1, help="Number of pairs to sort by length at a time.")] = 4096,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Number of processes, each with its own model, on a GPU of its own where there are."),
    ] = 1,
    engine: Annotated[
        Engine, typer.Option(help="Where the workers run: local processes, or Ray actors.")
    ] = Engine.local,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="GPUs of each Ray actor; a fraction shares one.")] = 0,
    address: Annotated[
        Optional[str],
        typer.Option(help="Ray cluster to join, or auto. Default: Ray is started here and ends with the command."),
    ] = None,
    shard: Annotated[
        Optional[str],
        typer.Option(
            metavar="I/N",
            help="Score only part I of N, from 0 to N - 1, for array jobs and other machines. OUTPUT is a folder.",
        ),
    ] = None,
    plot: Annotated[Optional[Path], typer.Option(help=f"Plot histograms to this file: {PLOT_ENDINGS}.")] = None,
    report: Annotated[
        Optional[Path], typer.Option(help="Write a page about the scores to this file: .html. See main-align report.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over and overwrite unfinished or finished work.")
    ] = False,
    split: Annotated[Optional[str], typer.Option(help="Split of a `datasets` source.")] = None,
    config: Annotated[Optional[str], typer.Option(help="Configuration of a `datasets` source.")] = None,
    instruction_field: Annotated[
        Optional[str],
        typer.Option(help="Field with the instruction; nested: data.question. Needs --response-field."),
    ] = None,
    response_field: Annotated[
        Optional[str], typer.Option(help="Field with the response. Needs --instruction-field.")
    ] = None,
    input_field: Annotated[
        Optional[str],
        typer.Option(help=f"Field whose text is appended to the instruction. Default: {', '.join(INPUT_FIELDS)}."),
    ] = None,
    system_field: Annotated[
        Optional[str], typer.Option(help="Field with the system prompt. Default: system, system_prompt and similar.")
    ] = None,
    preference: Annotated[
        PreferenceResponse, typer.Option(help="Response of a preference pair to score.")
    ] = PreferenceResponse.chosen,
    id_field: Annotated[Optional[str], typer.Option(help="Field with the row's id. Default: id.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Score every pair of INPUT and write one row per pair.

    The scores are likelihoods in both directions and PMI (nats per token), mutual (nats per √token), semantic and
    structural alignment. OUTPUT.manifest.json, or OUTPUT/manifest.json, defines every column. A row that cannot be
    scored keeps its id and gets a status, a reason and null scores. The exit code is 1 if no row can be scored. After
    an interruption, the same command resumes the run. The scores do not depend on the number of workers or shards,
    except in the last digits, which depend on the number of threads.

    The record formats below are recognised without options. The fields `input` and `context` are appended to the
    instruction. A system prompt and a history precede the pair: the model reads them, but they are not scored.

    **Examples**

    `main-align score pairs.jsonl -o scores.parquet`

    `main-align score alpaca.json -o scores.csv --model ./my-llama --dtype bfloat16`

    `main-align score qa.csv -o qa.parquet --instruction-field question --response-field answer`

    `main-align score 'data/*.parquet' -o scored/ --workers 8`

    `main-align score 'data/*.parquet' -o scored/ --engine ray --address auto --workers 64 --gpus-per-worker 1`

    `main-align score 'data/*.parquet' -o scored/ --shard $SLURM_ARRAY_TASK_ID/16`
    """
    from ..data.read import open_source
    from ..data.sources.listing import refuse_output
    from ..reporting.report import check_report
    from ..scoring.jobs.shard import Shard
    from ..scoring.resume import check_output, check_partial
    from .plots import check_plot
    from .progress_bar import ProgressBar

    fields = Fields(instruction_field, response_field, id_field, input_field, system_field, preference.value)
    scorer: dict[str, Any] = {"model": model, "dtype": dtype.value, "device": device, "revision": revision}
    scorer |= {"max_length": max_length, "truncate": truncate, "score_system": score_system, "bank": bank, "seed": seed}
    scorer |= {"batch_tokens": batch_tokens, "heads": heads, "compile": compile, "trust_remote_code": trust_remote_code}
    # Everything that can be refused is refused before the model is loaded.
    if engine is Engine.local and (gpus_per_worker or address):
        raise UserError("--gpus-per-worker and --address need --engine ray")
    part = Shard.parse(shard) if shard else Shard()
    check_output(out, part)
    check_partial(out)
    fields.check()
    if plot:
        check_plot(plot)
    if report:
        check_report(report)
    opened = open_source(sources[0] if len(sources) == 1 else sources, split=split, config=config)
    refuse_output(opened, out)
    notes = opened.check(fields)
    with ProgressBar() as progress_bar:
        if notes.unused:
            progress_bar.log(notes.warning())
        progress_bar.log(f"loading {model} ...")
        job: dict[str, Any] = {
            "fields": fields,
            "split": split,
            "config": config,
            "sort_window": sort_window,
            "restart": restart,
            "shard": part,
        }
        job["command"] = {"input": sources, "output": str(out), **scorer}
        actors = {"gpus": gpus_per_worker, "address": address} if engine is Engine.ray else None
        manifest = _score(opened, out, scorer, workers, actors, job, progress_bar)
    if not progress_bar.used:
        progress_bar.log(f"{out} was already complete for this input and model; --restart scores again")
    if "missing_parts" in manifest:
        typer.echo(
            f"shard {part} is done; {manifest['missing_parts']:,} of {manifest['parts']:,} parts are left to others"
        )
        return
    log_reasons(progress_bar.log, manifest["counts"], manifest["first_reasons"])
    _show(manifest, opened, out, plot)
    if report:
        from ..reporting.report import write_report

        write_report(out, report, input=opened)
        typer.echo(f"report: {report}")


def _score(
    source: Source,
    out: Path,
    scorer: dict[str, Any],
    workers: int,
    actors: dict[str, Any] | None,
    job: dict[str, Any],
    progress_bar: ProgressBar,
) -> dict[str, Any]:
    """Score in this process, in worker processes, or in Ray actors with these options."""
    hide_library_progress()
    from ..scoring.job import run_job, score_file
    from ..scoring.resume import partial_folder

    try:
        if actors is None:
            log = progress_bar.log
            return score_file(scorer, source, out, workers=workers, on_progress=progress_bar, log=log, **job)
        from ..ray.actors import RayActors

        pool = RayActors(workers, scorer, progress_bar.log, **actors)
        return run_job(pool, source, out, on_progress=progress_bar, **job)
    except KeyboardInterrupt:
        if partial_folder(out).exists():
            progress_bar.log(f"Finished work is saved in {partial_folder(out)}; run again to resume.")
        raise


def _show(manifest: dict[str, Any], source: Source, out: Path, plot: Path | None) -> None:
    """Print counts, scores and speed, and draw the plot. Raise UserError if no row was scored."""
    from rich.console import Console

    from ..data.formats.conversion import as_label
    from ..data.labels import read_aligned
    from ..data.pairs import SCORED
    from ..scoring.columns import PANELS
    from ..scoring.score_file import read_columns
    from .plots import plot_scores
    from .progress_bar import clock
    from .summary import score_summary, status_table

    if not any(manifest["counts"].get(status) for status in SCORED):
        raise UserError(f"{out}: no row could be scored; each row of the file has its reason")
    console, columns, speed = Console(), read_columns(out, "mutual").columns, manifest["throughput"]
    console.print(status_table(manifest["counts"]), "", score_summary(columns), "")
    earlier = speed["pairs_from_earlier_runs"]
    resumed = f", {earlier:,} pairs from an earlier run" if earlier else ""
    saved = f", {speed['shared_tokens']:,} tokens saved by shared prefixes" if speed["shared_tokens"] else ""
    console.print(
        f"{manifest['rows']:,} rows in {clock(speed['seconds'])} ({speed['pairs_per_second']:,.1f} pairs/s, "
        f"{speed['tokens_per_second']:,.0f} tokens/s{saved}{resumed})\nscores: {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if plot:
        title = f"{Path(source.name).name} scored with {manifest['settings']['scorer']['model']}"
        plot_scores(plot, columns, panels=PANELS, title=as_label(title), aligned=read_aligned(source))
        console.print(f"histograms: {plot}", highlight=False, markup=False, soft_wrap=True)
