"""make_report, write_report and plot_report: the results of a run as report.json and report.png."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..colors import BLUE, GREY, ORANGE
from ..data.atomic import atomic_write
from ..data.write import to_document
from ..scoring.score_file import read_columns
from .config import LoopConfig
from .mutual_filter import KEPT, SCORES
from .pairs import DROPPED
from .plan import Stage
from .run_dir import RunDir
from .train_stage import read_log

COLOURS: Mapping[str, str] = {"forward": BLUE, "reverse": ORANGE}
ROUND_KEYS = ("loss", "synthetic_weight", "nll", "nll_of", "seed_pairs", "synthetic_pairs")
FILTER_KEYS = ("filter_by", "threshold", "rows", "kept", "counts")


def make_report(config: LoopConfig, plan: list[Stage], run_dir: RunDir) -> dict[str, Any]:
    """Return the report of a finished run.

    Args:
        config: settings of the run.
        plan: its stages.
        run_dir: its folder.

    Returns:
        config, sessions (when the command was started and which stages it finished), resumed (how often the run was
        resumed), stages (their manifests), models (the last checkpoint of each direction), rounds (losses of both
        directions) and, after a filter stage, kept and dropped (files of pairs) and filter (threshold and counts).
    """
    stages = [run_dir.read_manifest(stage.name) for stage in plan]
    sessions = run_dir.read_sessions([stage.name for stage in plan])
    report: dict[str, Any] = {"config": asdict(config), "sessions": sessions, "resumed": len(sessions) - 1}
    report |= {"stages": stages, "models": {}, "rounds": {}}
    for stage, manifest in zip(plan, stages, strict=True):
        if stage.work == "train":
            report["models"][stage.direction] = str(run_dir.stage_dir(stage.name) / stage.direction)
            directions = report["rounds"].setdefault(str(stage.round), {})
            directions[stage.direction] = {name: manifest[name] for name in ROUND_KEYS}
        if stage.work == "filter":
            report["kept"] = str(run_dir.stage_dir(stage.name) / KEPT)
            report["dropped"] = str(run_dir.stage_dir(stage.name) / DROPPED)
            report["filter"] = {name: manifest[name] for name in FILTER_KEYS}
    return report


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write report.json atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_document(report), encoding="utf-8")


def plot_report(path: Path, report: Mapping[str, Any], plan: list[Stage], run_dir: RunDir) -> None:
    """Write report.png atomically."""
    from matplotlib import pyplot

    figure = draw(report, plan, run_dir)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)


def draw(report: Mapping[str, Any], plan: list[Stage], run_dir: RunDir) -> Any:
    """Return the figure: loss and α of every step, -log p after every round, and the scores of the filter."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    loss, weight, nll, scores = axes.flat
    _draw_steps(loss, weight, plan, run_dir)
    _draw_rounds(nll, report)
    _draw_filter(scores, plan, run_dir)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    resumed = f", resumed {report['resumed']}×" if report["resumed"] else ""
    title = f"MAIN's loop: {report['config']['rounds']} rounds of {report['config']['model']}{resumed}"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _set_titles(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)


def _draw_steps(loss: Any, weight: Any, plan: list[Stage], run_dir: RunDir) -> None:
    _set_titles(loss, "training loss", "step of the direction", "nats per token")
    _set_titles(weight, "α, the weight of synthetic pairs", "step of the direction", "")
    for direction, colour in COLOURS.items():
        offset = 0
        for stage in (stage for stage in plan if stage.work == "train" and stage.direction == direction):
            log = [entry for entry in read_log(run_dir.stage_dir(stage.name)) if "loss" in entry]
            label = {"label": direction} if offset == 0 else {}
            loss.plot([offset + entry["step"] for entry in log], [e["loss"] for e in log], ".-", color=colour, **label)
            weighted = [entry for entry in log if "synthetic_weight" in entry]
            if weighted:  # markers, because a single point has no line
                steps = [offset + entry["step"] for entry in weighted]
                weight.plot(steps, [entry["synthetic_weight"] for entry in weighted], ".-", color=colour)
            offset += run_dir.read_manifest(stage.name)["steps"]
            loss.axvline(offset, color=colour, linewidth=0.6, linestyle=":")
    weight.set_ylim(0, 1)
    for axis in (loss, weight):
        axis.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(frameon=False, fontsize=9)


def _draw_rounds(axis: Any, report: Mapping[str, Any]) -> None:
    rounds = report["rounds"]
    nll_of = next(iter(next(iter(rounds.values())).values()))["nll_of"]
    evaluated = {"eval_pairs": "evaluation pairs", "seed_pairs": "the seed pairs (training data)"}[nll_of]
    _set_titles(axis, f"-log p of {evaluated}", "round (0: warm-up)", "nats per token")
    for direction, name in (("forward", "-log p(y|x)"), ("reverse", "-log p(x|y)")):
        points = [(int(number), each[direction]["nll"]) for number, each in rounds.items() if direction in each]
        axis.plot(*zip(*points, strict=True), "o-", color=COLOURS[direction], label=name)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, fontsize=9)


def _draw_filter(axis: Any, plan: list[Stage], run_dir: RunDir) -> None:
    stage = next((stage for stage in plan if stage.work == "filter"), None)
    if stage is None:
        axis.text(0.5, 0.5, "no unpaired responses, so no filter", ha="center", transform=axis.transAxes)
        return
    manifest = run_dir.read_manifest(stage.name)
    score = manifest["filter_by"]
    values = read_columns(run_dir.stage_dir(stage.name) / SCORES, score).columns[score]
    values = values[np.isfinite(values)]
    # rows without a score are counted, as in the log, but are not in the histogram
    _set_titles(axis, f"augmented pairs: {manifest['kept']:,} of {manifest['rows']:,} kept", score, "scored pairs")
    axis.hist(values, bins=min(40, max(10, len(values) // 4)), color=BLUE)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.axvline(manifest["threshold"], color=GREY, linestyle="--", linewidth=1.2, label="threshold")
    axis.legend(frameon=False, fontsize=9)
