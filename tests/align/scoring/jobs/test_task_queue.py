"""TaskQueue: which worker gets which task."""

from __future__ import annotations

import pytest
from main_align.errors import UserError
from main_align.scoring.jobs.task_queue import TaskQueue
from main_align.scoring.jobs.worker import Finished, Task


def tasks(count: int) -> list[Task]:
    return [Task("score", number) for number in range(count)]


def queue_of(count: int) -> TaskQueue:
    return TaskQueue(tasks(count), lambda finished: None, lambda sentence: None)


def test_a_worker_gets_the_task_that_it_prepared():
    queue, (first, second, third, fourth, fifth) = queue_of(5), tasks(5)
    assert queue.take("a") == (first, second)
    assert queue.take("b") == (third, fourth)
    assert queue.take("b") == (fourth, fifth)
    assert queue.take("a") == (second, None)
    assert queue.take("b") == (fifth, None)
    assert not queue.waiting


def test_no_worker_is_idle_while_a_task_waits():
    queue, (first, second, third) = queue_of(3), tasks(3)
    assert queue.take("a") == (first, second)
    assert queue.take("b") == (third, None)
    assert queue.take("b") == (second, None)  # a would have had it
    assert not queue.waiting


def test_a_dead_worker_leaves_both_of_its_tasks():
    queue, (first, second) = queue_of(2), tasks(2)
    queue.take("a")
    queue.died("a", first, "signal 9")
    assert queue.take("b") == (first, None)
    assert queue.take("c") == (second, None)
    with pytest.raises(UserError, match="as did another before"):
        queue.died("b", first, "signal 9")


def test_a_task_that_kills_while_it_is_prepared_is_blamed_itself():
    queue, (first, second) = queue_of(2), tasks(2)
    assert queue.take("a") == (first, second)
    queue.died("a", first, "signal 9")  # of `second`
    assert queue.take("b") == (first, None)
    assert queue.take("b") == (second, None)
    queue.died("b", second, "signal 9")
    assert queue.take("c") == (second, None)
    with pytest.raises(UserError, match="while it worked on unit 1, as did another before"):
        queue.died("c", second, "signal 9")


def test_what_a_dead_worker_reported_is_taken_back():
    said: list[Finished] = []
    queue = TaskQueue(tasks(1), said.append, lambda sentence: None)
    task, _ = queue.take("a")
    queue.finished(task, Finished(3, 10))
    queue.died("a", task, "signal 9")
    queue.finished(queue.take("b")[0], Finished(5, 20))
    assert sum(finished.pairs for finished in said) == 5
