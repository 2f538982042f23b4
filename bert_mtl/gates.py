"""An exported model beside its run on the dev part: how far apart their answers are, and whether it may be used.

Heads of masked places are compared nowhere: what an export answers there says nothing of the true word.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from bert_mtl.answers import Answered, answer_part
from bert_mtl.calibration import calibrated
from bert_mtl.formats import Arrays
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.kinds import Head
from bert_mtl.kinds.multilabel import Multilabel
from bert_mtl.leaving import exit_of, left, thresholds
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.runs import RunError
from bert_mtl.served import ID_INPUTS

Predict = Callable[[Arrays], Sequence[Mapping[str, np.ndarray]]]
"""token_ids, type_ids and segment_ids, each `(rows, length)`, to each head's numbers behind every stage."""


class Exported:
    """What answers a part in the model's place (`answers.answer_part`); `depths` are those of its stages."""

    def __init__(self, model: MultiTaskModel, predict: Predict, depths: Sequence[int]):
        self.heads, self.predict, self.depths, self.name_at = model.heads, predict, list(depths), model.name_at

    def answer(self, batch: Mapping[str, Any], heads: tuple[str, ...], exits: bool = False) -> dict[str, tf.Tensor]:
        found = list(zip(self.depths, self.predict(rows_of(batch)), strict=True))
        return {
            self.name_at(name, depth): self._answer(self.heads[name], outputs[name], batch)
            for depth, outputs in (found if exits else found[-1:])
            for name in heads
        }

    @staticmethod
    def _answer(head: Head, found: np.ndarray, batch: Mapping[str, Any]) -> tf.Tensor:
        if head.level == "token":
            there, places = _places(batch)
            by_token = np.zeros((*there.shape, *found.shape[2:]), np.float32)
            by_token[there] = found[places]
            return tf.constant(by_token)
        by_segment = np.zeros((len(batch["index"]), *found.shape[1:]), np.float32)
        by_segment[: len(found)] = found
        return head.answer(tf.constant(by_segment), None, batch) if head.separate else tf.constant(by_segment)


def rows_of(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every segment of a batch as a row of its own: token_ids, type_ids and segment_ids, `(rows, length)` int32;
    segment_ids is 1 on tokens and 0 on padding."""
    there, (segments, positions) = _places(batch)
    shape = (segments.max(initial=-1) + 1, positions.max(initial=-1) + 1)
    rows = {name: np.zeros(shape, np.int32) for name in ID_INPUTS}
    rows["token_ids"][segments, positions] = batch["token_ids"][there]
    rows["type_ids"][segments, positions] = batch["type_ids"][there]
    rows["segment_ids"][segments, positions] = 1
    return rows


def _places(batch: Mapping[str, Any]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Which tokens of a batch `(rows, length)` are none of padding, and for these the 0-based number of their segment
    and their place in it."""
    there = batch["segment_ids"] > 0
    return there, (batch["segment_ids"][there] - 1, batch["position_ids"][there])


def answers_of(
    model: MultiTaskModel | Exported, dev: Mapping[str, Pipeline], exits: bool = False
) -> dict[str, Answered]:
    """What every head answers to its task's dev part, with `exits` at each of the model's depths."""
    found: dict[str, Answered] = {}
    for pipeline in dev.values():
        heads = {spec.name: spec.name for spec in pipeline.labels if spec.level != "mask"}
        if heads:
            found |= answer_part(model, pipeline, None if exits else heads)  # type: ignore[arg-type]  # `Exported` too
    return found


class Judged(NamedTuple):
    """What the manifest says of an export on dev: a gate of each head, and what is found for each of its stages."""

    gates: dict[str, dict]
    stages: list[dict[str, dict[str, float]]]


def judged(
    heads: Mapping[str, Head], run: Mapping[str, Answered], export: Sequence[Mapping[str, Answered]],
    depths: Sequence[int], exit_drop: float,
) -> Judged:  # fmt: skip
    """An export that gives the answers `export` behind the layers of `depths`, beside its run: `compared`, and of heads
    that choose one label where texts may leave, at the cost of at most `exit_drop` points, and how sure they may be."""
    found: dict[str, dict] = compared(heads, run, export[-1])
    stages: list[dict] = [{"leave": {}, "temperature": {}} for _ in depths]
    for name, gate in found.items():
        if heads[name].kind != "classification":
            continue
        head, labels, answers = heads[name], run[name].labels, [answered[name].answers for answered in export]
        places = np.zeros(len(labels), int)
        if len(depths) > 1:

            def score(answers: np.ndarray, head: Head = head, labels: np.ndarray = labels) -> float:
                return head.metrics(answers, labels)[head.metric]

            best = gate["metrics"]["run"][head.metric]
            chosen = thresholds(answers, depths, score, best - exit_drop / 100 - 1e-9)
            for stage, threshold in zip(stages, chosen, strict=False):
                stage["leave"][name] = threshold
            places = exit_of(answers, chosen)
            gate["exits"] = {
                "drop": 100 * (best - score(left(answers, places))),
                "layers": float(np.take(depths, places).mean()),
                "answered": {depth: float((places == place).mean()) for place, depth in enumerate(depths)},
            }
        temperatures, *errors = calibrated(left(answers, places), labels, places, len(depths))
        for stage, temperature in zip(stages, temperatures, strict=True):
            stage["temperature"][name] = temperature
        gate["calibration"] = dict(zip(("ece_before", "ece_after", "texts"), errors, strict=True))
    return Judged(found, stages)


def compared(heads: Mapping[str, Head], run: Mapping[str, Answered], export: Mapping[str, Answered]) -> dict[str, dict]:
    """By head: `difference`, the largest of any number of an answer; `agreement`, the share of items whose answers come
    down to the same (`_choice`); `metrics` of run and export; `drop`, the points of the head's metric that are lost."""
    found = {}
    for name, theirs in run.items():
        head, own = heads[name], export[name]
        if not len(theirs.index):
            continue
        pairs = list(zip(theirs.answers, own.answers, strict=True))
        metrics = {who: head.metrics(part.answers, part.labels) for who, part in (("run", theirs), ("export", own))}
        found[name] = {
            "difference": max(float(np.abs(np.asarray(a) - np.asarray(b)).max(initial=0)) for a, b in pairs),
            "agreement": float(np.mean([_choice(head, a) == _choice(head, b) for a, b in pairs])),
            "metrics": metrics,
            "drop": 100 * (metrics["run"][head.metric] - metrics["export"][head.metric]),
        }
    return found


def check(name: str, found: Mapping[str, dict], max_drop: float) -> None:
    """Raises RunError where a head of the format `name` loses more than `max_drop` points of its metric."""
    lost = [f"{head} {values['drop']:.2f}" for head, values in found.items() if not values["drop"] <= max_drop]
    if lost:
        raise RunError(
            f"max_drop must hold; on dev format {name} loses {', '.join(lost)} points, where at most {max_drop} "
            "may be lost. Export in a higher precision, or allow more with max_drop=…"
        )


def _choice(head: Head, answer: Any) -> Any:
    """What an answer comes down to: the likeliest of its numbers (of each word's), all labels from their thresholds on;
    a single number, rounded to a half."""
    values = np.asarray(answer)
    if isinstance(head, Multilabel):
        return (values >= head.thresholds).tolist()
    return values.argmax(axis=-1).tolist() if values.ndim else round(2 * float(values))
