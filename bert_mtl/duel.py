"""One head as several groups of runs answered it: which can be compared, their scores and differences.

Runs are compared where they have answered the same examples with the same labels; what is not compared is noted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

import numpy as np

from bert_mtl.answer_table import AnswerTable, HeadAnswers, HeadFacts
from bert_mtl.disagreements import disagreements
from bert_mtl.groups import FinishedRun
from bert_mtl.significance import mcnemar, paired_bootstrap


@dataclass(frozen=True)
class Side:
    """What one run has answered as the head `name` of its `task`."""

    run: FinishedRun
    name: str
    task: str
    table: AnswerTable

    @property
    def facts(self) -> HeadFacts:
        return self.table.heads[self.name]

    @cached_property
    def answers(self) -> HeadAnswers:
        return self.table.head(self.name)

    @cached_property
    def known(self) -> np.ndarray:
        """`(examples,)`: which of them the metric is made of."""
        return np.asarray(~np.isnan(self.answers.statistics).any(axis=1))


@dataclass
class Duel:
    """The sides of every group: none of a group that has no such head. The first group that has it is the baseline.

    `notes` say what was not compared, and why.
    """

    head: str
    names: Sequence[str]
    sides: Sequence[Sequence[Side]]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def baseline(self) -> int:
        return next(place for place, sides in enumerate(self.sides) if sides)

    @cached_property
    def reference(self) -> Side:
        """The run that the others' examples must be those of."""
        return self.sides[self.baseline][0]

    def report(self, resamples: int, seed: int) -> dict[str, Any]:
        """The head's part of the payload, without what depends on the other heads' p."""
        rivals = [place for place in range(self.baseline + 1, len(self.sides)) if self.sides[place]]
        if rivals and self.baseline:
            self.notes.append(
                f"{self.head}: compared with {self.names[self.baseline]}, as the baseline has no such head."
            )
        compared = [place for place in rivals if self._comparable(place)]
        against: list[dict | None] = [None] * (len(self.sides) - 1)
        for place, result in zip(compared, self._differences(compared, resamples, seed), strict=True):
            against[place - 1] = result
        facts = self.reference.facts
        return {
            "kind": facts.kind,
            "metric": facts.metric,
            "higher_is_better": True,
            "baseline": self.baseline,
            "scores": [self._scores(sides) for sides in self.sides],
            "against": against,
            "disagreements": self._disagreements(compared) if compared else [],
        }

    def _scores(self, sides: Sequence[Side]) -> dict[str, Any]:
        own = [side.facts for side in sides if side.facts[:2] == self.reference.facts[:2]]
        values = [facts.value for facts in own if facts.value is not None]
        deviation = stdev(values) if len(values) > 1 else None
        return {"mean": fmean(values) if values else None, "deviation": deviation, "values": values}

    def _comparable(self, place: int) -> bool:
        sides = [*self.sides[self.baseline], *self.sides[place]]
        reasons = dict.fromkeys(reason for side in sides if (reason := self._unlike(side)))
        self.notes += [f"{self.head}: {self.names[place]} is not compared: {reason}." for reason in reasons]
        return not reasons

    def _unlike(self, side: Side) -> str | None:
        """Why a run cannot be compared with the reference."""
        own, theirs = side.facts, self.reference.facts
        names = f"{side.run.name} and {self.reference.run.name}"
        if own[:2] != theirs[:2]:
            return f"{names} have other kinds or metrics ({own.kind}, {own.metric}; {theirs.kind}, {theirs.metric})"
        if own.score is None or theirs.score is None:
            return f"its metric {own.metric} is not made of single examples, or has none"
        if side.table.texts_hash != self.reference.table.texts_hash:
            texts, others = side.table.texts(), self.reference.table.texts()
            both = sum((Counter(texts) & Counter(others)).values())
            return (
                f"{names} have answered other examples ({len(texts):,} and {len(others):,}, {both:,} of them the same)"
            )
        if not side.answers.label.equals(self.reference.answers.label):
            return f"{names} have other labels"
        if not np.array_equal(side.known, self.reference.known):
            return f"{names} are scored on other examples"
        if side.run.data[side.task] != self.reference.run.data[self.reference.task]:
            self.notes.append(
                f"{self.head}: {names} have other data (its fingerprints differ: its train part may be another, or its "
                "limit, or the task's heads); the examples compared and their labels are the same."
            )
        return None

    def _differences(self, compared: Sequence[int], resamples: int, seed: int) -> list[dict]:
        if not compared:
            return []
        places, known, score = [self.baseline, *compared], self.reference.known, self.reference.facts.score
        groups = [[side.answers.statistics[known] for side in self.sides[place]] for place in places]
        results = paired_bootstrap(str(score), groups, resamples, seed)
        return [
            result._asdict() | {"mcnemar": self._exact(place), "examples": int(known.sum())}
            for place, result in zip(compared, results, strict=True)
        ]

    def _exact(self, place: int) -> dict | None:
        """McNemar's test, of two single runs whose answers are right or wrong."""
        pair = [*self.sides[self.baseline], *self.sides[place]]
        known = self.reference.answers.right.is_valid().to_numpy()
        if len(pair) > 2 or not known.any():
            return None
        baseline, this = (side.answers.right.fill_null(False).to_numpy()[known] for side in pair)
        return mcnemar(baseline, this)._asdict()

    def _disagreements(self, compared: Sequence[int]) -> list[dict]:
        among = (self.baseline, *compared)
        groups = [[side.answers for side in sides] if i in among else [] for i, sides in enumerate(self.sides)]
        return disagreements(self.reference.table.texts(), groups)
