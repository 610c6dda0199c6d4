"""The suite's commands, format of results, ratios, tables, pictures and checks."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from bench import check, inputs, kernels, peers, report
from bench.__main__ import COMMANDS
from bench.__main__ import main as bench
from bench.cases import CASES, SIZES, case
from bench.peak_memory import PeakMemory
from bench.ratios import ahead, noise_of, ratio_of, verdict_of
from bench.records import machine_text, merged, read_rows, write_rows
from bench.report import behind, pictures, reasons, scaling, summary, tables

ROOT = Path(__file__).parents[2]


def row(ours=(1.1, 1.2, 1.3), peer=(2.2, 2.4, 2.6), again=(1.1, 1.21, 1.29), **changes):
    target = {"run": "ours", "against": "products_3", "quantity": "time", "must": 1.25, "goal": 1.15}
    machine = {"cpu": "X", "instruction_set": "AVX2", "threads": 1, "device": "cpu", "commit": "abc"}
    return {
        "suite": "kernels",
        "case": "info_nce",
        "family": "contrastive",
        "size": "large",
        "shape": {"n": 8, "d": 4},
        "dtype": "float32",
        "inputs": "random",
        "machine": machine | {"versions": {"torch": "2"}, "date": "2026-01-01"},
        "runs": {
            "products_3": {"role": "floor", "phase": "floor", "samples_s": [1.0, 1.0, 1.0]},
            "ours": {"role": "ours", "phase": "forward+backward", "samples_s": list(ours), "peak_mb": 9.0},
            "ours_again": {"role": "again", "phase": "forward+backward", "samples_s": list(again)},
            "eager": {"role": "peer", "phase": "forward+backward", "samples_s": list(peer), "peak_mb": 3.0},
            "liger": {"role": "peer", "phase": "forward+backward", "missing": "needs a GPU"},
        },
        "targets": [target],
        "differing": [],
        "facts": {},
    } | changes


def test_every_command_has_a_main():
    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(module).main)


def test_an_unknown_command_is_refused(capsys):
    assert bench(["kernel"]) == 2
    assert "no command kernel" in capsys.readouterr().err
    assert bench(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_ratios_are_paired_and_have_quartiles():
    got = ratio_of(row(), "eager", "ours")
    assert (got.median, got.low, got.high) == pytest.approx((2, 2, 2))
    got = ratio_of(row(), "ours", "products_3")
    assert (got.median, got.low, got.high) == pytest.approx((1.2, 1.15, 1.25))
    assert ratio_of(row(), "ours", "eager", "memory").median == pytest.approx(3)
    assert ratio_of(row(), "ours", "liger") is None
    assert ratio_of(row(ours=(1.0, 2.0)), "ours", "products_3").median == pytest.approx(1.5)  # took no turns


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(1.1, "goal"), (1.2, "must"), (1.24, "noise"), (1.26, "noise"), (1.4, "missed")],
    ids=lambda x: str(x),
)
def test_a_verdict_allows_for_the_same_code_timed_twice(seconds, verdict):
    measured = row(ours=[seconds] * 3, again=[seconds * 0.98, seconds, seconds * 1.04])
    assert noise_of(measured) == pytest.approx(0.93 * 0.03 / 3**0.5)
    assert noise_of(row(again=[1.1 * 1.05, 1.2 * 1.05, 1.3 * 1.05])) == pytest.approx(0.05)
    assert verdict_of(measured, measured["targets"][0]) == verdict


def test_a_difference_within_the_noise_is_none():
    near = row(peer=(1.1, 1.21, 1.3), again=(1.0, 1.2, 1.4))
    assert tables.speedup(near, "eager", "ours") == "none"
    assert tables.speedup(row(), "eager", "ours") == "2.00×"
    assert tables.speedup(row(peer=(0.55, 0.6, 0.65)), "eager", "ours") == "0.50× ✗"


def test_what_is_ahead_of_us_is_listed_with_its_reason(monkeypatch):
    faster = row(peer=(0.55, 0.6, 0.65))
    assert [(peer, what) for _, peer, what, _ in ahead(faster)] == [("eager", "time"), ("eager", "memory")]
    assert list(ahead(faster | {"differing": ["eager"]})) == []  # its result is wrong
    monkeypatch.setattr(reasons, "REASONS", {("info*", "eager", "time", "*"): "it cheats"})
    text = behind.where_we_lose([faster])
    assert "| `info_nce` | large | eager | 2.00× time | float32 AVX2 | it cheats |" in text
    assert "3.00× memory | float32 AVX2 | not explained yet |" in text
    assert behind.where_we_lose([row(ours=[0.1] * 3) | {"differing": ["eager"]}]) == behind.NOWHERE


def test_rows_of_one_kind_of_machine_replace_each_other(tmp_path):
    old, other = row(), row()
    other["machine"] = other["machine"] | {"instruction_set": "AVX512"}
    rows = merged([old, other], new := row(size="large", peer=(9.0, 9.0, 9.0)))
    assert rows == [new, other]
    write_rows(tmp_path / "new" / "rows.json", rows)
    assert read_rows(tmp_path / "new" / "rows.json") == rows
    assert read_rows(tmp_path / "none.json") == []


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "old.json").write_text('{"rows": []}')
    with pytest.raises(SystemExit, match=r"old\.json: schema None instead of 1"):
        read_rows(tmp_path / "old.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        ("", "not a file of results"),
        ("[]", "which holds an object"),
        ('{"schema": 1}', "no list of rows"),
        ('{"schema": 1, "rows": []}', "no rows"),
        ('{"schema": 1, "rows": [{"suite": "kernels"}]}', "row 1 has no case, size"),
        ('{"rows": []}', "schema None"),
    ],
    ids=str,
)
@pytest.mark.parametrize("other", [False, True])
def test_a_check_without_rows_says_so_and_finds_nothing_worse(content, reason, other, tmp_path, capsys):
    """Status 1 means a ratio that is worse."""
    (good, file) = (tmp_path / "good.json", tmp_path / "file.json")
    write_rows(good, [row()])
    if content is not None:
        file.write_text(content)
    assert check.main([str(good), "--against", str(file)] if other else [str(file), "--against", str(good)]) == 2
    assert re.search(rf"file\.json.*{reason}", capsys.readouterr().err)


def test_fields_of_later_versions_are_kept(tmp_path):
    later = row() | {"weather": "rain"}
    write_rows(tmp_path / "rows.json", [later])
    assert read_rows(tmp_path / "rows.json") == [later]
    assert check.main([str(tmp_path / "rows.json"), "--against", str(tmp_path / "rows.json")]) == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["kernels", "--rounds", "0"], "at least 1, got 0"),
        (["kernels", "-o", "{folder}"], "is a folder"),
        (["kernels", "-o", "{folder}/file/rows.json"], "Not a directory|File exists"),
        (["kernels", "--op", "info_nce", "--size", "smollm2"], "none of these ops has one of these sizes"),
        (["kernels", "--op", "segment_pool_mean", "--sweep"], "none of these ops has a sweep"),
        (["scoring", "--pairs", "0"], "at least 1, got 0"),
        (["training", "--pairs", "-1"], "at least 1, got -1"),
        (["host-time", "--rounds", "0"], "at least 1, got 0"),
        (["aot", "-o", "{folder}"], "is a folder"),
        (["aot", "--renew", "{folder}/none.json"], "none.json does not exist"),
    ],
    ids=" ".join,
)
def test_options_are_refused_before_the_work(words, reason, tmp_path, capsys):
    """Without rounds a row of results was replaced by one without samples; a folder was noticed after the work."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as refusal:
        bench([word.format(folder=tmp_path) for word in words])
    assert refusal.value.code == 2
    assert re.search(reason, capsys.readouterr().err)


def test_pairs_that_do_not_exist_are_an_error_in_one_line(tmp_path, capsys):
    assert bench(["training", str(tmp_path / "none.jsonl"), "--minutes", "0"]) == 2
    assert re.match(r"python -m bench training: .*none\.jsonl: no such file", capsys.readouterr().err.splitlines()[-1])


def test_the_readme_has_the_kind_of_machine_with_most_rows():
    """One op on another machine left one row of the table, and an op without a place in it none."""
    here = [row(), row(case="sigmoid_loss")]
    laptop = here[0]["machine"] | {"threads": 8, "date": "2027-01-01"}
    expected = summary.readme_table(here)
    assert "1 thread of X (AVX2)" in expected
    assert summary.readme_table([*here, row(machine=laptop)]) == expected
    assert summary.readme_table([*here, row(case="row_logsumexp", machine=laptop)]) == expected
    assert "8 threads" in summary.readme_table([*here, *(one | {"machine": laptop} for one in here)])


def test_the_readme_can_be_written_without_large_rows_and_without_git():
    assert summary.readme_table([row(size="small")]) == summary.readme_table([]) == summary.NO_ROWS
    without, other = (row(case=name) for name in ("info_nce", "sigmoid_loss"))
    without["machine"] = without["machine"] | {"commit": None}
    assert "commit unknown." in summary.readme_table([without])
    assert "commits unknown and abc." in summary.readme_table([without, other])


def test_a_sweep_of_an_op_that_no_longer_exists_is_left_out():
    assert scaling.scaled([row(case="gone", size="n=512", shape={"n": 512})]) == []


def test_a_table_has_one_line_per_target_and_names_what_is_missing():
    text = tables.markdown([row()])
    assert "| `info_nce` | N=8 D=4 | float32 | AVX2 | products 3 | 1.20 (1.15–1.25) ✓ | ≤ 1.25 | ≤ 1.15 | 2.00×" in text
    assert "- liger: needs a GPU (info_nce)" in text
    assert "N=8" in tables.plain([row()])


@pytest.mark.parametrize(("threads", "text"), [(1, "1 thread of X (AVX2)"), (2, "2 threads of X (AVX2)")])
def test_one_thread_is_a_singular(threads, text):
    assert machine_text(row()["machine"] | {"threads": threads}) == text


def test_exponents_are_slopes_of_logarithms():
    swept = [
        row(ours=[n**2 * 1e-9] * 3, size=f"n={n}", shape={"n": n, "d": 256}) for n in (512, 1024, 2048, 4096, 8192)
    ]
    (entry,) = scaling.scaled(swept)
    assert entry.time("ours").exponent() == pytest.approx(2)
    assert entry.time("products_3").exponent() == pytest.approx(0)
    assert entry.memory("ours").exponent() == pytest.approx(0)
    assert "| 2 | 2.00 | 0.00 |" in scaling.exponents(swept)


@pytest.mark.parametrize("changes", [{"threads": 2}, {"dtype": "bfloat16"}], ids=str)
def test_a_curve_has_the_rows_of_one_kind_of_machine_and_one_dtype(changes):
    """Another number of threads is another curve: both at each size gave the exponent of neither."""
    swept = [
        row(ours=[n**power * 1e-9] * 3, size=f"n={n}", shape={"n": n, "d": 256}) | kind
        for power, kind in ((2, {}), (1, changes))
        for n in (512, 1024, 2048)
    ]
    for one in swept:
        one["machine"] = one["machine"] | {"threads": one.get("threads", 1)}
    entries = scaling.scaled(swept)
    assert [entry.time("ours").exponent() for entry in entries] == pytest.approx([2, 1])
    assert [entry.time("ours").sizes for entry in entries] == [[512, 1024, 2048]] * 2
    places = [line.split(" | ")[2] for line in scaling.exponents(swept).splitlines()[2:]]
    assert len(set(places)) == 2


def test_a_regression_is_found_and_noise_is_not(tmp_path, capsys):
    write_rows(tmp_path / "before.json", [row(ours=[1.0] * 3, again=[1.0] * 3)])

    def status(seconds, again=1.0, **changes):
        write_rows(tmp_path / "now.json", [row(ours=[seconds] * 3, again=[seconds * again] * 3, **changes)])
        return check.main([str(tmp_path / "now.json"), "--against", str(tmp_path / "before.json")])

    assert status(1.04) == 0
    assert status(1.2) == 1
    assert "WORSE" in capsys.readouterr().out
    assert status(1.2, again=1.3) == 0
    assert status(1.2, size="small") == 2  # nothing to compare
    assert "nothing to compare" in capsys.readouterr().err


def test_noise_of_times_hides_no_memory(tmp_path, capsys):
    target = {"run": "ours", "against": "eager", "quantity": "memory", "must": None, "goal": None}
    noisy = row(again=[2.2, 2.4, 2.6], targets=[target])
    more = row(again=[2.2, 2.4, 2.6], targets=[target], inputs="random")
    more["runs"]["ours"]["peak_mb"] *= 1.2
    for name, rows in (("before", [noisy]), ("now", [more])):
        write_rows(tmp_path / f"{name}.json", rows)
    assert check.main([str(tmp_path / "now.json"), "--against", str(tmp_path / "before.json")]) == 1
    assert "memoryWORSE" in capsys.readouterr().out.replace(" ", "")


def test_pages_and_pictures_are_what_was_measured():
    assert report.outdated(report.all_rows()) == []


def test_a_changed_number_makes_its_page_and_picture_outdated():
    rows = report.all_rows()
    measured = next(r for r in rows if r["case"] == "info_nce" and r["size"] == "large" and r["dtype"] == "float32")
    measured["runs"]["ours"]["samples_s"] = [9.0 for _ in measured["runs"]["ours"]["samples_s"]]
    assert {"docs/benchmarks.md", "bench/results/kernels_ratios.png"} <= set(report.outdated_timings(rows))


def test_every_picture_is_drawn(tmp_path):
    swept = [row(size=f"n={n}", shape={"n": n, "d": 256}) for n in (512, 1024, 2048)]
    scoring = row(suite="scoring", facts={"tokens_per_pair": 64})
    scoring["runs"]["products"] = scoring["runs"].pop("products_3")
    rows = [row(), *swept, scoring]
    for name in pictures.PICTURES:
        pictures.draw(name, rows, tmp_path / name)
        assert pictures.is_current(name, rows, tmp_path / name)
        assert not pictures.is_current(name, [], tmp_path / name)


def test_the_pinned_peers_are_those_that_are_compared():
    pinned = {pin.partition("==")[0]: pin for pin in peers.pins() if "==" in pin}
    assert set(peers.PACKAGES) <= set(pinned)


def test_the_peers_are_listed(capsys):
    assert peers.main([]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^{name}(==\S+)?  ", shown, re.MULTILINE) for name in peers.PACKAGES)


@pytest.mark.parametrize("wrong", ["sign", "order"])
def test_a_gradient_of_the_same_norm_is_not_the_same_gradient(wrong):
    right = CASES["row_logsumexp"].tiny("float32")
    leaf = right.leaves[0]
    loss = {"sign": lambda: -leaf.sin().sum(), "order": lambda: leaf.flip(0).detach().mul(leaf).sum()}[wrong]
    same = {"sign": lambda: leaf.sin().sum(), "order": lambda: leaf.detach().mul(leaf).sum()}[wrong]
    right.contenders = {}
    right.train("eager", same)
    right.train("ours", lambda: same() * (1 + 1e-5))
    right.train("peer", lambda: loss() - loss().detach() + same().detach())
    computed, _ = kernels.warm_up(right)
    assert kernels.differing(right, computed, kernels.AGREEMENT["float32"]) == ["peer"]


def test_what_an_older_torch_lacks_is_absent_and_no_failure(monkeypatch):
    """`python -m pytest bench` skips what is absent, and fails with any other error."""
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    tiny = CASES["linear_cross_entropy"].tiny("float32")
    names = ["torch_linear_cross_entropy", "torch_linear_cross_entropy_chunked"]
    tiny.contenders = {name: tiny.contenders[name] for name in names}
    _, missing = kernels.warm_up(tiny)
    assert missing == dict.fromkeys(names, f"torch {torch.__version__} has no linear_cross_entropy")


@pytest.mark.slow
def test_a_row_is_measured_by_the_command(tmp_path, monkeypatch, capsys):
    """With torch.compile switched off: compiling takes time and is not what is tested."""
    file = tmp_path / "rows.json"
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # in the process that measures memory
    words = ["kernels", "--op", "segment_pool_mean", "--size", "small", "--rounds", "3", "-o", str(file)]
    with torch._dynamo.config.patch(disable=True):
        assert bench(words) == 0
    (measured,) = read_rows(file)
    printed = capsys.readouterr()
    assert "min left]" in printed.err
    assert "segment_pool_mean" in printed.out
    assert len(measured["runs"]["ours_forward"]["samples_s"]) >= 3
    assert noise_of(measured) is not None
    assert json.loads(file.read_text())["schema"] == 1


def test_real_states_are_an_input_of_the_heads():
    assert CASES["linear_cross_entropy"].inputs("smollm2") == ("random", "smollm2")
    assert CASES["linear_cross_entropy"].inputs("large") == ("random",)
    chosen = list(kernels.chosen_rows([CASES["linear_cross_entropy"]], ["smollm2"], None))
    assert [what.inputs for what in chosen] == ["random", "smollm2"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says which memory belongs to a file")
def test_real_states_are_not_read_from_their_file_during_a_run(tmp_path, monkeypatch):
    """Pages of a file that a run is the first to touch would count as its memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(inputs, "_read", lambda tokens: (torch.ones(tokens, 8), torch.ones(9, 8), torch.ones(tokens)))
    states = inputs.hidden_states(4)
    mapped = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    ranges = [[int(end, 16) for end in place.split("-")] for place in mapped]
    assert not any(begin <= state.data_ptr() < end for state in states for begin, end in ranges)


def test_every_size_of_a_case_can_be_chosen():
    for one in CASES.values():
        assert set(one.shapes) <= set(SIZES), one.name


@pytest.mark.parametrize("is_fast", [False, True])
def test_bfloat16_is_measured_by_default_only_where_it_is_fast(is_fast, monkeypatch):
    """Without the instructions a peer's product takes minutes, and one row the time of the whole suite."""
    monkeypatch.setattr(case, "has_fast_bfloat16", lambda: is_fast)
    assert not chosen_bfloat16(["small"], None)
    assert bool(chosen_bfloat16(["large"], None)) == is_fast
    assert bool(chosen_bfloat16(["large-wide"], None)) == is_fast
    assert chosen_bfloat16(["large"], ["bfloat16"])


def chosen_bfloat16(sizes, dtypes):
    chosen = kernels.chosen_rows(list(CASES.values()), sizes, dtypes)
    return [row.case.name for row in chosen if row.dtype == "bfloat16"]


def test_no_row_begins_after_the_time_is_over(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PeakMemory, "__enter__", lambda self: self)
    monkeypatch.setattr(PeakMemory, "__exit__", lambda *arguments: None)
    monkeypatch.setattr(case, "has_fast_bfloat16", lambda: True)
    assert kernels.main(["--op", "info_nce", "--minutes", "0"]) == 0
    assert "out of time: 3 rows are not measured" in capsys.readouterr().err
