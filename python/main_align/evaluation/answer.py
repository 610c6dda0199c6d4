"""answer_file: let a model answer a question file, with a resume that gives the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..checks import check_values
from ..data.atomic import atomic_write
from ..data.pairs import Pair, Turn
from ..data.read import open_source
from ..data.sources.listing import refuse_overwriting
from ..environment import versions
from ..errors import UserError
from ..loop.batch_journal import generate_batches, read_generations
from ..loop.config import check_temperature
from ..loop.distributed import Processes
from ..loop.generation import Generator, Prompt, Sampling, TransformersGenerator, make_batches, make_prompts
from ..loop.model_pair import describe_model
from ..loop.pairs import Generation
from ..loop.run_dir import JOURNAL_SUFFIX
from ..models.checkpoint import find_checkpoint
from ..models.devices import pick_dtype, warn_if_slow
from ..models.load import load
from ..progress import Progress
from ..scoring.manifest import manifest_path, read_object, write_manifest
from ..scoring.resume import delete, delete_unless_locked, is_complete, open_or_resume, partial_folder
from .benchmarks import FORMATS, Answers, Question, read_questions


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """Settings of the generation.

    Args:
        temperature: sampling temperature, at least 1e-6; 0 is greedy. Default: as the benchmark sets it.
        max_new_tokens: longest answer in tokens. Default: as in the benchmark's scripts.
        batch_tokens: tokens of one batch, with padding and new tokens. Default 16384.
        seed: random seed. Default 0.
        dtype: "auto", "float32", "bfloat16" or "float16". Default "auto".
        trust_remote_code: run code that comes with the model. Default False.

    Raises:
        UserError: a value has the wrong type or is out of range; the message names the setting.
    """

    temperature: float | None = None
    max_new_tokens: int | None = None
    batch_tokens: int = 16384
    seed: int = 0
    dtype: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_values(self, {"temperature": 0, "max_new_tokens": 1, "batch_tokens": 1, "seed": 0})
        check_temperature(self.temperature)


def answer_file(
    model: str,
    questions: str,
    out: Path,
    *,
    answer_format: str,
    settings: AnswerSettings | None = None,
    restart: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Answer every question of a file and write the answer file of a benchmark.

    The answer to a question does not depend on the other questions of its batch, up to rounding. Finished batches are
    kept in OUT.partial, so an interrupted run resumes after its last batch. Started with `accelerate launch`, the
    processes share the batches.

    Args:
        model: folder or hub id; also a LoRA adapter, or smollm2.
        questions: the question file of the benchmark.
        out: answer file to write. Its name without the ending is the model's name.
        answer_format: a key of FORMATS.
        settings: settings of the generation. Default: the defaults of AnswerSettings.
        restart: overwrite finished or unfinished work. Default False.
        on_progress: called with each Progress. Default: no progress.

    Returns:
        The manifest, which is also written to OUT.manifest.json: settings, counts by status, and the turns without a
        finished answer.

    Raises:
        UserError: an unknown format, a file that is no question set, a model that cannot generate, an output with other
            settings, or a run in which nothing could be answered.
    """
    if answer_format not in FORMATS:
        raise UserError(f"answer_format: expected {' or '.join(FORMATS)}, got {answer_format!r}")
    FORMATS[answer_format].check_output(out)
    processes = Processes()
    job = _Job(model, questions, out, answer_format, settings or AnswerSettings(), processes)
    report = partial(_count_answers, on_progress) if on_progress and processes.is_main else lambda progress: None
    if processes.is_main and restart:
        delete_unless_locked(out, list(partial_folder(out).rglob(f"*{JOURNAL_SUFFIX}")))
    complete = not restart and processes.is_main and is_complete(out, job.description)
    if processes.broadcast(complete):
        return read_object(manifest_path(out), "start over with --restart")
    if processes.is_main:
        open_or_resume(out, job.description)
    processes.barrier()
    return job.run(report)


def _count_answers(on_progress: Callable[[Progress], None], progress: Progress) -> None:
    on_progress(replace(progress, unit="answers"))


class _Job:
    """One question file, one model and one answer file."""

    def __init__(
        self, model: str, source: str, out: Path, answer_format: str, settings: AnswerSettings, processes: Processes
    ) -> None:
        self.out, self.processes, self.settings, self.format = out, processes, settings, FORMATS[answer_format]
        opened = open_source(source)
        refuse_overwriting(out, opened.paths())
        try:
            self.questions = read_questions(list(opened.rows()), self.format)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        self.max_new_tokens = settings.max_new_tokens or self.format.max_new_tokens
        self.checkpoint = find_checkpoint(model, trust_remote_code=settings.trust_remote_code)
        self.info = describe_model(model, self.checkpoint, max(settings.batch_tokens, self.max_new_tokens))
        self.dtype = pick_dtype(settings.dtype, processes.device)
        warn_if_slow(self.dtype, processes.device)
        self.description = {
            "input": {"digest": opened.digest()},
            "scorer": {"model": model, "digest": self.info.digest},
            "format": self.format.name,
            "temperature": settings.temperature,
            "max_new_tokens": self.max_new_tokens,
            "batch_tokens": settings.batch_tokens,
            "seed": settings.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def run(self, on_progress: Callable[[Progress], None]) -> dict[str, Any]:
        """Generate the answers turn by turn, then write the answer file and its manifest."""
        answers: list[list[Generation]] = [[] for _ in self.questions]
        tokens, seconds = 0, 0.0
        for turn in range(max(len(question.turns) for question in self.questions)):
            generated, turn_tokens, turn_seconds = self._turn(turn, answers, on_progress)
            for row, generation in generated.items():
                answers[row].append(generation)
            tokens, seconds = tokens + turn_tokens, seconds + turn_seconds
        manifest = self._manifest(answers, tokens, seconds)
        if self.processes.is_main:
            self._write(answers, manifest)
        self.processes.barrier()
        return manifest

    def _turn(
        self, turn: int, answers: Sequence[Sequence[Generation]], on_progress: Callable[[Progress], None]
    ) -> tuple[dict[int, Generation], int, float]:
        """Return the answers of one turn by row, and the tokens and seconds that this process spent on them."""
        rows = [row for row, question in enumerate(self.questions) if turn < len(question.turns)]
        pairs = {row: self._pair(self.questions[row], turn, answers[row]) for row in rows}
        texts, info = list(pairs.values()), self.info
        prompts, skipped = make_prompts(texts, info.encoder, "forward", self.max_new_tokens, info.context)
        found = {rows[index]: generation for index, generation in skipped.items()}
        placed = [Prompt(rows[prompt.row], prompt.ids) for prompt in prompts]
        tokens, seconds = 0, 0.0
        for temperature in sorted({self._temperature(row) for row in rows}):
            group = [prompt for prompt in placed if self._temperature(prompt.row) == temperature]
            batches = make_batches(group, self.max_new_tokens, self.settings.batch_tokens)
            name = f"turn {turn + 1}, temperature {temperature:g}"
            folder = partial_folder(self.out) / name.replace(", ", "-").replace(" ", "-")
            folder.mkdir(exist_ok=True)
            sampling = Sampling(self.max_new_tokens, temperature, 1.0, self.settings.seed * 1009 + turn)
            load_generator = partial(self._generator, sampling)
            spent = generate_batches(batches, load_generator, folder, self.processes, on_progress, name)
            tokens, seconds = tokens + spent[0], seconds + spent[1]
            self.processes.barrier()
            found |= self.processes.broadcast(read_generations(folder, batches) if self.processes.is_main else None)
        return found, tokens, seconds

    def _temperature(self, row: int) -> float:
        override = self.settings.temperature
        return self.questions[row].temperature if override is None else override

    def _pair(self, question: Question, turn: int, answers: Sequence[Generation]) -> Pair:
        """Return a turn as a pair without a response; earlier turns and their answers are its context."""
        context: list[Turn] = []
        for text, answer in zip(question.turns[:turn], answers, strict=True):
            context += [Turn("user", text), Turn("assistant", answer.text)]
        return Pair(question.key, int(question.key), question.turns[turn], context=tuple(context), unit="question")

    def _generator(self, sampling: Sampling) -> Generator:
        return TransformersGenerator(self._model, self.info.tokenizer, sampling, "empty_response")

    @cached_property
    def _model(self) -> Any:
        trust = self.settings.trust_remote_code
        name, device = self.checkpoint.name, self.processes.device
        return load(name, dtype=self.dtype, device=device, trust_remote_code=trust).model

    def _manifest(self, answers: Sequence[Sequence[Generation]], tokens: int, seconds: float) -> dict[str, Any]:
        turns = [
            (question.key, turn + 1, generation)
            for question, generations in zip(self.questions, answers, strict=True)
            for turn, generation in enumerate(generations)
        ]
        unfinished = [
            {"question": key, "turn": turn, "status": each.status, "reason": each.reason}
            for key, turn, each in turns
            if each.status != "ok"
        ]
        return {
            "settings": self.description,
            "questions": len(self.questions),
            "counts": dict(Counter(each.status for _, _, each in turns)),
            "unfinished": unfinished,
            "tokens": sum(each.tokens for _, _, each in turns),
            "throughput": {"seconds": round(seconds, 3), "tokens_per_second": round(tokens / max(seconds, 1e-9), 1)},
            "versions": versions(),
        }

    def _write(self, answers: Sequence[Sequence[Generation]], manifest: dict[str, Any]) -> None:
        if not any(each.text for generations in answers for each in generations):
            first = manifest["unfinished"][0]
            raise UserError(
                f"{self.out}: the model answered nothing; the first is {first['status']}: {first['reason']}"
            )
        started = (partial_folder(self.out) / "job.json").stat().st_mtime
        texts = [tuple(each.text for each in generations) for generations in answers]
        with atomic_write(self.out) as temporary:
            self.format.write(temporary, self.questions, Answers(self.out.stem, texts, started))
        write_manifest(self.out, manifest)
        delete(self.out)
