"""The suite `scoring`: its floor, its contenders that need no other package, and its rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from main_align.data.pairs import Pair
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from bench import peers, scoring, scoring_peers, session, texts
from bench.records import read_rows
from bench.report import pictures, tables

from ..align.tiny_models import cpu_only, tiny_model_folder

PAIRS = [("Name a colour.", "Red."), ("Add two and three, please.", "It is five."), ("Hi", "Hello, how are you?")]
# A query head has its own products with the keys that it shares; torch 2.11 counts one key head per query head alone.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop(
        q, q[:2] + k[2:], q[:2] + v[2:]
    )
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def models(model: Path) -> scoring.Models:
    return scoring.Models(str(model), "float32")


@pytest.fixture
def contest(models: scoring.Models) -> scoring.Contest:
    return scoring.Contest([Pair(str(row), row, *pair) for row, pair in enumerate(PAIRS)], models)


@pytest.fixture(autouse=True)
def without_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise peers.Absent(f"{name} is not used in tests")

    monkeypatch.setattr(scoring_peers, "import_peer", absent)


def flops(run) -> int:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        run()
    counts = counter.get_flop_counts()
    angles = [sum(counts[name].values()) for name in counts if name.endswith("rotary_emb")]
    return counter.get_total_flops() - sum(angles)  # earlier versions of transformers compute them by a product


@pytest.mark.parametrize("name", ["ours", "padded"])
def test_all_contenders_compute_the_same_log_likelihoods(contest, name):
    np.testing.assert_allclose(getattr(contest, name)(), contest.four_pass(), rtol=1e-4)


def test_a_peer_installs_nothing_while_it_is_measured(monkeypatch):
    class LazyLoader:
        def _install_package(self, package, pip_args=None):
            raise AssertionError("installed")

    monkeypatch.setattr(scoring_peers, "import_peer", lambda name: SimpleNamespace(LazyLoader=LazyLoader))
    scoring_peers._install_nothing()
    with pytest.raises(peers.Absent, match="ray is not installed"):
        LazyLoader()._install_package("ray")


def test_the_ifd_is_the_ratio_of_mean_losses_of_one_response(contest):
    (sequence, _), *_ = contest.sequences
    start, stop = sequence.second_span
    ids = torch.tensor([sequence.ids])
    with torch.no_grad():
        after = contest.model(ids, labels=torch.where(torch.arange(stop) < start, -100, ids)).loss
        alone = contest.model(ids[:, start:], labels=ids[:, start:]).loss
    assert contest.ifd()[0, 0] == pytest.approx(float(after / alone), rel=1e-5)


@cpu_only("the counter knows CUDA's attention by another name")
def test_the_floor_has_exactly_the_products_of_the_packed_passes(contest):
    forward = contest.models.scorer.forward
    sequences = [sequence for pair in contest.sequences for sequence in pair]
    spans = [span for sequence in sequences for span in (sequence.first_span, sequence.second_span)]
    head = sum(stop - start for start, stop in spans) * 2 * forward.head.weight.numel()
    assert flops(contest.products) == flops(contest.backbone) + head
    assert flops(lambda: forward(sequences)) == flops(contest.products)


@cpu_only("the counter knows CUDA's attention by another name")
def test_the_floor_counts_a_prefix_that_pairs_share_once(models):
    texts = [
        ("Name one of the many colours that you can see in a rainbow.", answer) for answer in ("Red.", "Blue it is")
    ]
    contest = scoring.Contest([Pair(str(row), row, *pair) for row, pair in enumerate(texts)], models)
    sequences = [sequence for pair in contest.sequences for sequence in pair]
    assert contest.tokens < sum(len(sequence.ids) for sequence in sequences)
    assert flops(lambda: models.scorer.forward(sequences)) == flops(contest.products)


def test_padded_batches_hold_every_sequence_and_few_tokens():
    lengths = {(row, side): 300 * row + side + 1 for row in range(9) for side in (0, 1)}
    batches = list(scoring._padded_batches(list(lengths), lengths.__getitem__))
    assert sorted(place for batch in batches for place in batch) == sorted(lengths)
    sizes = [len(batch) * max(lengths[place] for place in batch) for batch in batches]
    assert max(size for size, batch in zip(sizes, batches, strict=True) if len(batch) > 1) <= scoring.BATCH_TOKENS


@pytest.mark.parametrize("tokens", [64, 127])
def test_pairs_are_cut_and_joined_to_one_length(models, tokens):
    encoder = models.scorer.encoder
    made = texts.of_length(texts.read(texts.PAIRS), encoder, tokens, 3)
    encoded = encoder.encode([(pair.instruction, pair.response) for pair in made], [()] * 3)
    assert [len(pair.x) + len(pair.y) for pair in encoded] == [tokens] * 3
    assert len({pair.instruction for pair in made}) == 3


def test_the_same_pairs_are_drawn_every_time(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"instruction": f"say {n}", "response": str(n)} for n in range(20)] + [{"instruction": "", "response": "x"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(texts.read(file)) == 20
    assert texts.read(file, 5) == texts.read(file, 5)
    assert len(texts.read(file, 99)) == 20


def test_rows_are_tables_and_points_of_the_picture(model, tmp_path, capsys):
    out = tmp_path / "scoring.json"
    words = ["--model", str(model), "--pairs", "3", "--size", "mixed", "64", "--rounds", "2", "-o", str(out)]
    assert scoring.main([*words, "--dtype", "float32"]) == 0
    mixed, short = read_rows(out)
    assert mixed["differing"] == short["differing"] == []
    assert short["facts"]["tokens_per_pair"] == 64
    assert "tokens_per_pair" not in mixed["facts"]
    assert [len(run["samples_s"]) for run in mixed["runs"].values() if "samples_s" in run] == [2] * 6
    text = tables.markdown([mixed, short])
    assert "| `score`, forward | pairs=3, pairs.jsonl | float32 |" in text
    assert "| products |" in text
    assert "lm_eval: lm_eval.models.huggingface is not used in tests (score)" in text
    assert "vllm: needs a GPU, and a torch of its own version (score)" in text
    pictures.draw("scoring_throughput.png", [mixed, short], tmp_path / "picture.png")
    assert "[2/2, 0 min left] score 64 float32" in capsys.readouterr().err


def test_no_row_begins_after_the_time_is_over(model, capsys):
    assert scoring.main(["--model", str(model), "--size", "mixed", "64", "--dtype", "float32", "--minutes", "0"]) == 0
    assert "out of time: 2 rows are not measured" in capsys.readouterr().err


def test_pairs_that_cannot_be_scored_are_refused(models):
    with pytest.raises(SystemExit, match="of 1 pairs, the model can score 0"):
        scoring.Contest([Pair("1", 1, "x" * 9999, "y")], models)


def test_ours_that_differs_is_wrong_and_a_peer_that_differs_is_not():
    row = {"runs": {"ours": {}, "lm_eval": {"missing": "failed: RuntimeError: no"}}, "differing": ["padded"]}
    assert not session.wrong(row)
    assert session.wrong(row | {"differing": ["ours"]})
