"""What a run learned from (`bert_mtl.reference`) and what it is asked (`bert_mtl.samples`) go in; a row a signal that
may have shifted comes out."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bert_mtl.reference import seen_pieces
from bert_mtl.samples import Asked, Samples
from bert_mtl.shifts import chi_square, jensen_shannon, mean_difference, psi

Measure = Literal["psi", "jensen-shannon", "deviations", "share"]
Verdict = Literal["none shown", "moderate", "large", "too few texts"]
LIMITS: dict[Measure, tuple[float, float]] = {
    "psi": (0.1, 0.25),
    "jensen-shannon": (0.2, 0.3),
    "deviations": (0.2, 0.5),
    "share": (0.01, 0.05),
}
"""From where on a shift is moderate, and large. PSI: the custom of credit scoring (Siddiqi 2006); deviations: Cohen's
small and medium effect; the other two: docs/serving.md."""
SURE = 0.01
"""A shift whose p-value is not below may be chance."""


class Signal(NamedTuple):
    """One comparison.

    Attributes:
        task, head: whose; the head is empty where it is about the task's texts.
        signal: what is compared; `reference` and `now` are its values in train and in the samples, where it has any.
        measure: in what `shift` is told.
        p: how probable as much is by chance; None where no test is sound.
        texts: how many samples it is about.
        detail: what has changed most.
    """

    task: str
    head: str
    signal: str
    reference: float | None
    now: float | None
    measure: Measure
    shift: float
    p: float | None
    verdict: Verdict
    texts: int
    detail: str = ""

    @property
    def key(self) -> str:
        """What a tracker calls it: `drift/<head>/psi`, `drift/<task>/length`."""
        return f"drift/{self.head or self.task}/{'psi' if self.signal == 'labels' else self.signal}"


def signals(training: Mapping[str, Any], samples: Samples, tasks: Sequence[str], least: int) -> Iterator[Signal]:
    """The rows of tasks, all that training.json says of each beside the samples; those of fewer than `least` texts are
    not judged."""

    def row(task: str, head: str, signal: str, texts: int, found: "_Shift") -> Signal:
        return Signal(
            task, head, signal, found.reference, found.now, found.measure, found.shift, found.p,
            verdict(found.measure, found.shift, found.p, texts >= least), texts, found.detail,
        )  # fmt: skip

    for task in tasks:
        asked = samples.tasks[task]
        for name, texts, shift in _of_texts(training["tasks"][task], asked):
            yield row(task, "", name, texts, shift)
        for head, reference in training["heads"].items():
            if reference["task"] == task and (answers := samples.answers.get(head)):
                for name, shift in _of_answers(reference, answers):
                    yield row(task, head, name, len(answers), shift)


def verdict(measure: Measure, shift: float, p: float | None, enough: bool) -> Verdict:
    """What a shift comes to: by its size (`LIMITS`), where it is not chance."""
    if not enough:
        return "too few texts"
    moderate, large = LIMITS[measure]
    if abs(shift) < moderate or (p is not None and p >= SURE):
        return "none shown"
    return "large" if abs(shift) >= large else "moderate"


class _Shift(NamedTuple):
    measure: Measure
    shift: float
    p: float | None
    reference: float | None
    now: float | None
    detail: str = ""


def _of_texts(reference: Mapping[str, Any], asked: Asked) -> Iterator[tuple[str, int, _Shift]]:
    """Signal, texts and shift of all that is known of a task's texts."""
    if asked.texts:
        lengths, tokens = reference["lengths"], sum(asked.tokens)
        was, now = np.array(lengths["counts"]), np.histogram(asked.tokens, lengths["edges"])[0]
        means = reference["tokens"] / reference["rows"], tokens / len(asked.tokens)
        yield "length", asked.texts, _Shift("psi", psi(was, now), chi_square(was, now), *means)
        if reference["truncated"] is not None:
            yes_no = _yes_no(reference["truncated"], reference["examples"], asked.truncated, asked.texts)
            yield "truncated", asked.texts, _Shift("psi", psi(*yes_no), chi_square(*yes_no), *_shares(yes_no))
        # No test: what is unknown comes in clusters, as the tokens of a text are not independent.
        yes_no = _yes_no(reference["unknown"], reference["tokens"], asked.unknown, tokens)
        was_share, share = _shares(yes_no)
        yield "unknown", asked.texts, _Shift("share", share - was_share, None, was_share, share)
    if asked.counted and asked.pieces.total():
        pieces, total = reference["pieces"], asked.pieces.total()
        known = {int(piece): count for piece, count in pieces["counts"].items()}
        own = [asked.pieces[piece] for piece in known]
        was = np.array([*known.values(), pieces["total"] - sum(known.values())])
        distance = jensen_shannon(was, np.array([*own, total - sum(own)]))
        yield "vocabulary", asked.counted, _Shift("jensen-shannon", distance, None, None, None)
        seen = seen_pieces(pieces)
        new = sum(count for piece, count in asked.pieces.items() if not seen[piece]) / total
        yield "new_pieces", asked.counted, _Shift("share", new, None, 0.0, new)


def _of_answers(reference: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, _Shift]]:
    """Signal and shift of all that is known of a head's labels."""
    yield from OF_KIND.get(reference["kind"], lambda reference, answers: ())(reference, answers)


def _classification(reference: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, _Shift]]:
    yield "labels", _of_labels(reference["labels"], Counter(answer["label"] for answer in answers), tested=True)


def _multilabel(reference: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, _Shift]]:
    """The label whose share has shifted most; its p-value is that of the smallest of as many (Bonferroni)."""
    found = Counter(label for answer in answers for label in answer["labels"])
    shifts = []
    for label, count in reference["labels"].items():
        yes_no = _yes_no(count, reference["examples"], found[label], len(answers))
        p = chi_square(*yes_no)
        p = None if p is None else min(p * len(reference["labels"]), 1.0)
        shifts.append(_Shift("psi", psi(*yes_no), p, *_shares(yes_no), label))
    yield "labels", max(shifts, key=lambda shift: shift.shift)


def _regression(reference: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, _Shift]]:
    yield "value", _of_mean(reference, [answer["value"] for answer in answers])


def _tagging(reference: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, _Shift]]:
    yield "entities", _of_mean(reference, [sum(answer["spans"].values()) for answer in answers])
    types = sum((Counter(answer["spans"]) for answer in answers), Counter())
    if types and len(reference["labels"]) > 1:  # no test: those of one text are not independent
        yield "labels", _of_labels(reference["labels"], types, tested=False)


OF_KIND: dict[str, Callable[..., Iterator[tuple[str, _Shift]]]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "regression": _regression,
    "tagging": _tagging,
}


def _of_labels(reference: Mapping[str, int], now: Mapping[str, int], tested: bool) -> _Shift:
    """Shares of labels; what has changed most is told."""
    reference = {**{label: 0 for label in now}, **reference}  # what train never had may be all there is now
    was, own = np.array(list(reference.values())), np.array([now.get(label, 0) for label in reference])
    changes = own / own.sum() - was / was.sum()
    most = int(np.abs(changes).round(9).argmax())  # of two labels the changes are alike but for the last digit
    shares = float(was[most] / was.sum()), float(own[most] / own.sum())
    return _Shift("psi", psi(was, own), chi_square(was, own) if tested else None, *shares, list(reference)[most])


def _of_mean(reference: Mapping[str, Any], values: Sequence[float]) -> _Shift:
    shift, p = mean_difference(reference["mean"], reference["deviation"], reference["examples"], np.array(values))
    return _Shift("deviations", shift, p, reference["mean"], float(np.mean(values)))


def _yes_no(was: int, of: int, now: int, of_now: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([was, of - was]), np.array([now, of_now - now])


def _shares(yes_no: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    was, now = (float(counts[0] / counts.sum()) for counts in yes_no)
    return was, now
