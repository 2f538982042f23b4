"""Rows through an engine's stages: batches, who leaves when, and that nobody's answer depends on company."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_bundle import head

from serving.batcher import Batcher, Found
from serving.bundle import StageFiles
from serving.engines import Engine, EngineError
from serving.heads import Classification
from serving.metrics import Metrics, VersionMetrics
from serving.rows import Row
from serving.steps import Heads
from serving.worker import once
from serving.workers import Local

HEADS = {name: Classification(**head("classification", [2], labels=["neg", "pos"])) for name in ("imdb", "tone")}


def rows_of(*lengths: int) -> list[Row]:
    """The first id of each row is its number."""
    return [Row(np.array([number, *[9] * (length - 1)]), False) for number, length in enumerate(lengths)]


class Stages:
    """An engine of three stages that are sure of a row whose number is in `sure`; it notes who came."""

    def __init__(self, sure: dict[str, list[list[int]]]):
        self.sure, self.seen = sure, []
        inputs = [["token_ids", "segment_ids"], ["states", "segment_ids"], ["states", "segment_ids"]]
        stages = [
            StageFiles(path="", inputs=names, depth=depth, leave={} if depth == 6 else {"imdb": 0.9, "tone": 0.9})
            for names, depth in zip(inputs, (2, 4, 6), strict=True)
        ]
        self.engine = Engine("test", stages, [lambda arrays, at=at: self.run(at, arrays) for at in range(3)])

    def run(self, stage: int, arrays: dict) -> dict:
        states = arrays["states"] if stage else arrays["token_ids"][:, :, None] + np.zeros(2, np.float32)
        assert (states[arrays["segment_ids"] == 0] == 0).all()
        numbers = [round(float(value)) - stage for value in states[:, 0, 0]]
        self.seen.append((stage, numbers, states.shape[1]))
        outputs = {
            name: np.array([[0.05, 0.95] if n in sure[stage] else [0.5, 0.5] for n in numbers], np.float32)
            + stage * 1e-3
            for name, sure in self.sure.items()
        }
        return outputs | ({"next_states": (states + 1) * arrays["segment_ids"][:, :, None]} if stage < 2 else {})

    def answer(self, rows: list[Row], tokens: int, asked=("imdb",)) -> list[Found]:
        async def run() -> list[Found]:
            batcher = Batcher([Local(self.engine, HEADS, 0)], tokens, 100, VersionMetrics(Metrics(), "1"))
            batcher.start()
            found = await batcher.run([(row, Heads(frozenset(asked))) for row in rows], 10)
            await batcher.close()
            return found

        return asyncio.run(run())


def nobody() -> dict[str, list[list[int]]]:
    return {"imdb": [[], [], []], "tone": [[], [], []]}


def test_sure_rows_leave_and_the_others_go_on_together():
    stages = Stages(nobody() | {"imdb": [[0, 2, 3], [1], []]})
    rows = stages.answer(rows_of(2, 2, 3, 3, 3), tokens=9)
    assert stages.seen == [(0, [0, 1], 2), (1, [1], 2), (0, [2, 3, 4], 3), (1, [4], 3), (2, [4], 3)]
    expected = [[0.05, 0.95], [0.051, 0.951], [0.05, 0.95], [0.05, 0.95], [0.502, 0.502]]
    np.testing.assert_allclose([row.outputs["imdb"] for row in rows], expected, atol=1e-6)


def test_rows_that_wait_for_the_same_stage_are_run_together():
    stages = Stages(nobody())
    stages.answer(rows_of(5, 5, 5, 5), tokens=10)
    assert stages.seen == [(stage, rows, 5) for rows in ([0, 1], [2, 3]) for stage in range(3)]


def test_each_head_answers_where_it_is_sure_and_the_row_stays_for_the_others():
    stages = Stages({"imdb": [[0], [0], []], "tone": [[], [0], []]})
    (row,) = stages.answer(rows_of(2), 8, asked=("imdb", "tone"))
    assert [at for at, _, _ in stages.seen] == [0, 1]
    np.testing.assert_allclose([row.outputs["imdb"][1], row.outputs["tone"][1]], [0.95, 0.951], atol=1e-6)
    assert row.stages == {"imdb": 0, "tone": 1}


def test_a_stage_that_answers_otherwise_than_its_manifest_says_is_refused():
    stages = Stages({"imdb": [[], [], []]})
    with pytest.raises(EngineError, match="must have an output for head tone; it has imdb, next_states"):
        stages.answer(rows_of(2), 8)


def test_an_engine_that_two_lanes_ask_for_at_once_is_made_once():
    made = []

    def make() -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    get = once(make)
    with ThreadPoolExecutor(2) as lanes:
        found = list(lanes.map(lambda _: get(), range(2)))
    assert len(made) == 1 and found == made * 2
