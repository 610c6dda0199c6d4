"""What a run comes to: report.json, and report.png for people to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..data.atomic import (
    atomic_write,
)
from ..plots import BLUE, GREY, ORANGE
from ..scoring.score_file import read_columns
from .config import LoopConfig
from .mutual_filter import KEPT, SCORES
from .plan import Stage
from .run_dir import RunFolder
from .train_stage import read_log

COLOURS: Mapping[str, str] = {"forward": BLUE, "reverse": ORANGE}


def make_report(config: LoopConfig, plan: list[Stage], folder: RunFolder) -> dict[str, Any]:
    """The report of a finished run: where its results are, what each stage did, and the way of both directions."""
    stages = [folder.manifest(stage.name) for stage in plan]
    report: dict[str, Any] = {"config": asdict(config), "stages": stages, "models": {}, "rounds": {}}
    for stage, made in zip(plan, stages, strict=True):
        if stage.work == "train":
            report["models"][stage.direction] = str(folder.stage(stage.name) / stage.direction)
            of_round = report["rounds"].setdefault(str(stage.round), {})
            names = ("loss", "alpha", "nll", "nll_of", "seeds", "synthetic")
            of_round[stage.direction] = {name: made[name] for name in names}
        if stage.work == "filter":
            report["kept"] = str(folder.stage(stage.name) / KEPT)
            report["filter"] = {name: made[name] for name in ("by", "limit", "kept", "counts")}
    return report


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plot_report(path: Path, report: Mapping[str, Any], plan: list[Stage], folder: RunFolder) -> None:
    """Write report.png, whole or not at all."""
    from matplotlib import pyplot

    figure = draw(report, plan, folder)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)


def draw(report: Mapping[str, Any], plan: list[Stage], folder: RunFolder) -> Any:
    """The figure: loss and alpha of every step, -log p after every round, and what the filter kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    loss, alpha, nll, scores = axes.flat
    _steps(loss, alpha, plan, folder)
    _rounds(nll, report)
    _kept(scores, plan, folder)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.suptitle(
        f"MAIN's loop: {report['config']['rounds']} rounds of {report['config']['model']}", x=0.01, ha="left"
    )
    return figure


def _title(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)


def _steps(loss: Any, alpha: Any, plan: list[Stage], folder: RunFolder) -> None:
    _title(loss, "training loss", "step of the direction", "nats per token")
    _title(alpha, "alpha, the weight of synthetic pairs", "step of the direction", "")
    for direction, colour in COLOURS.items():
        before = 0
        for stage in (stage for stage in plan if stage.work == "train" and stage.direction == direction):
            log = [entry for entry in read_log(folder.stage(stage.name)) if "loss" in entry]
            steps = [before + entry["step"] for entry in log]
            first = {"label": direction} if before == 0 else {}
            loss.plot(steps, [entry["loss"] for entry in log], ".-", color=colour, **first)
            weighed = [
                (step, entry["synthetic_weight"])
                for step, entry in zip(steps, log, strict=True)
                if "synthetic_weight" in entry
            ]
            if weighed:
                alpha.plot(*zip(*weighed, strict=True), ".-", color=colour)  # a point alone has no line
            before += folder.manifest(stage.name)["steps"]
            loss.axvline(before, color=colour, linewidth=0.6, linestyle=":")
    alpha.set_ylim(0, 1)
    for axis in (loss, alpha):
        axis.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(frameon=False, fontsize=9)


def _rounds(axis: Any, report: Mapping[str, Any]) -> None:
    rounds = report["rounds"]
    of = next(iter(next(iter(rounds.values())).values()))["nll_of"]
    seen = {"heldout": "held-out pairs", "seeds": "the seeds, which were trained on"}[of]
    _title(axis, f"-log p of {seen}", "round (0: warm-up)", "nats per token")
    for direction, name in (("forward", "-log p(y|x)"), ("reverse", "-log p(x|y)")):
        points = [(int(k), found[direction]["nll"]) for k, found in rounds.items() if direction in found]
        axis.plot(*zip(*points, strict=True), "o-", color=COLOURS[direction], label=name)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, fontsize=9)


def _kept(axis: Any, plan: list[Stage], folder: RunFolder) -> None:
    stage = next((stage for stage in plan if stage.work == "filter"), None)
    if stage is None:
        axis.text(0.5, 0.5, "no unlabelled responses, so no filter", ha="center", transform=axis.transAxes)
        return
    made = folder.manifest(stage.name)
    values = read_columns(folder.stage(stage.name) / SCORES, made["by"]).columns[made["by"]]
    values = values[np.isfinite(values)]
    rows = sum(made["counts"].values())  # as the command says it: those without a score are no part of the bars
    _title(axis, f"augmented pairs: {made['kept']:,} of {rows:,} kept", made["by"], "scored pairs")
    axis.hist(values, bins=min(40, max(10, len(values) // 4)), color=BLUE)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.axvline(made["limit"], color=GREY, linestyle="--", linewidth=1.2, label="limit of what was kept")
    axis.legend(frameon=False, fontsize=9)
