"""Losses for sentence-transformers: their values and gradients without duplicates, masks with them, their trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

pytest.importorskip("sentence_transformers")

from main_align.integrations import sentence_transformers as ours
from main_align.integrations.sentence_transformers import _hashes, _pair_ids
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses as theirs
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import dot_score, euclidean_sim
from transformers import BertConfig, BertModel, BertTokenizerFast

from ..forked import run_ranks

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(40))]
ANCHORS = ["w1 w2", "w3", "w4 w5 w6", "w7 w8"]
POSITIVES = ["w11", "w12 w13", "w14 w15", "w16 w17 w18"]
NEGATIVES = ["w21 w22", "w23", "w24", "w25 w26"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").double().eval()


def features(model: SentenceTransformer, *columns: list[str]) -> list[dict[str, Any]]:
    return [dict(model.tokenize(column)) for column in columns]


def value_and_gradient(loss: torch.nn.Module, model: SentenceTransformer, columns: Any) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    value = loss(features(model, *columns), None)
    value.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return value.item(), gradient.clone()


@pytest.mark.parametrize("columns", [(ANCHORS, POSITIVES), (ANCHORS, POSITIVES, NEGATIVES)], ids=["pairs", "triplets"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MultipleNegativesRankingLoss", {}),
        ("MultipleNegativesRankingLoss", {"scale": 5.0, "similarity_fct": dot_score}),
        ("MultipleNegativesRankingLoss", {"directions": ("query_to_doc", "doc_to_query")}),
        ("MultipleNegativesSymmetricRankingLoss", {}),
        ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 3}),
        ("CachedMultipleNegativesSymmetricRankingLoss", {"mini_batch_size": 2}),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_values_and_gradients_are_theirs_without_duplicates(model, name, options, columns):
    found, gradient = value_and_gradient(getattr(ours, name)(model, **options), model, columns)
    wanted, wanted_gradient = value_and_gradient(getattr(theirs, name)(model, **options), model, columns)
    assert found == pytest.approx(wanted, rel=1e-9)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-12)


def test_columns_of_different_lengths_are_refused(model):
    loss = ours.MultipleNegativesRankingLoss(model)
    with pytest.raises(ValueError, match="as many anchors as positives, got 4 and 3"):
        loss(features(model, ANCHORS, POSITIVES[:3]), None)


def test_a_batch_without_texts_has_no_hashes():
    ids = torch.zeros((0, 5), dtype=torch.int64)
    assert [column.tolist() for column in _hashes([{"input_ids": ids, "attention_mask": ids}] * 2)] == [[], []]


@pytest.mark.parametrize("cached", [False, True])
def test_rows_that_share_a_text_are_no_negatives(model, cached):
    """As if the pairs of a shared positive were absent from each other's row, computed entry by entry."""
    positives = [POSITIVES[0], POSITIVES[1], POSITIVES[0], POSITIVES[3]]
    negatives = [POSITIVES[1], *NEGATIVES[1:]]
    name = "CachedMultipleNegativesRankingLoss" if cached else "MultipleNegativesRankingLoss"
    loss = getattr(ours, name)(model)
    found = float(loss(features(model, ANCHORS, positives, negatives), None))
    a, p, n = (
        torch.nn.functional.normalize(model(each)["sentence_embedding"])
        for each in features(model, ANCHORS, positives, negatives)
    )
    scores = 20 * (a @ torch.cat([p, n]).T)
    scores[0, 2] = scores[2, 0] = -torch.inf  # the same positive
    scores[1, 4] = -torch.inf  # a negative that is the positive itself
    wanted = torch.nn.functional.cross_entropy(scores, torch.arange(4))
    assert found == pytest.approx(wanted.item(), rel=1e-9)
    assert found != pytest.approx(
        float(getattr(theirs, name)(model)(features(model, ANCHORS, positives, negatives), None)), rel=1e-4
    )


def test_a_hash_is_that_of_the_text_whatever_the_padding(model):
    left, right = torch.tensor([[0, 0, 7, 9]]), torch.tensor([[7, 9, 0]])
    mask = [torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 0]])]
    a, b = _hashes([{"input_ids": left, "attention_mask": mask[0]}, {"input_ids": right, "attention_mask": mask[1]}])
    assert torch.equal(a, b)
    (swapped,) = _hashes([{"input_ids": torch.tensor([[9, 7, 0]]), "attention_mask": mask[1]}])
    assert not torch.equal(b, swapped)
    assert _hashes([{"pixel_values": torch.zeros(1)}]) is None
    rows, documents = _pair_ids([torch.tensor([1, 2, 1]), torch.tensor([5, 6, 7]), torch.tensor([6, 8, 9])])
    assert rows[0] == rows[2] != rows[1]
    assert documents[3] == rows[1]
    assert len({*documents[3:].tolist(), *rows.tolist()}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity_fct": euclidean_sim}, "similarity_fct: expected cos_sim or dot_score"),
        ({"directions": ("query_to_doc", "query_to_query")}, "directions: expected .* got query_to_query"),
        ({"hardness_mode": "all_negatives", "hardness_strength": 1.0}, "hardness_mode: expected None"),
    ],
)
def test_what_is_not_fused_is_refused_by_name(model, options, message):
    with pytest.raises(ValueError, match=message):
        ours.MultipleNegativesRankingLoss(model, **options)


def _compare_gathered(folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    network = SentenceTransformer(folder, device="cpu").double().eval()
    own = slice(2 * rank, 2 * rank + 2)
    columns = (ANCHORS[own], POSITIVES[own], NEGATIVES[own])
    for name in ("MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss"):
        options = {"gather_across_devices": True}
        found, gradient = value_and_gradient(getattr(ours, name)(network, **options), network, columns)
        wanted, wanted_gradient = value_and_gradient(getattr(theirs, name)(network, **options), network, columns)
        assert found == pytest.approx(wanted, rel=1e-9)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-12)
        alone, _ = value_and_gradient(getattr(ours, name)(network), network, columns)
        assert found != pytest.approx(alone, rel=1e-4)
    torch.distributed.destroy_process_group()


def test_values_and_gradients_are_theirs_across_processes(model, tmp_path):
    model.save(str(tmp_path / "model"))
    run_ranks(2, _compare_gathered, str(tmp_path / "model"), folder=tmp_path)


def _refuse_uneven(folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    network = SentenceTransformer(folder, device="cpu").double().eval()
    loss = ours.MultipleNegativesRankingLoss(network, gather_across_devices=True)
    for counts in ((3, 2), (4, 0)):
        rows = [torch.zeros(counts[rank], 4, requires_grad=True) for _ in range(2)]
        with pytest.raises(ValueError, match=f"in every process, got {counts[0]}, {counts[1]}; set dataloader_drop"):
            loss.compute_loss_from_embeddings(rows, torch.empty(0))
    torch.distributed.destroy_process_group()


def test_different_numbers_of_rows_are_refused_in_every_process(model, tmp_path):
    """Gloo aborted the process whose peer had more rows, and waited for the one without rows."""
    model.save(str(tmp_path / "model"))
    run_ranks(2, _refuse_uneven, str(tmp_path / "model"), folder=tmp_path)


def test_their_trainer_trains_with_it(model, tmp_path):
    rows = Dataset.from_dict({"anchor": ANCHORS * 2, "positive": POSITIVES * 2})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=rows, loss=ours.MultipleNegativesRankingLoss(model)
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < 0.5 * logged[0]
