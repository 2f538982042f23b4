"""R-Drop (Liang et al. 2021): a batch is read twice under other dropout, and the two answers are drawn together."""

from collections.abc import Mapping
from typing import Any

from keras import ops

from bert_mtl.kinds import Head


def twice(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The model's inputs, once more behind themselves as rows and segments of their own: outputs come in two halves."""
    rows, length = ops.shape(inputs["token_ids"])
    segments, tokens = ops.shape(inputs["first_token"])[0], rows * length

    def again(name: str, values: Any) -> Any:
        if name == "segment_ids":
            return ops.where(values > 0, values + segments, values)
        if name == "partner":
            return values + segments
        return values + tokens if name == "first_token" or name.startswith("place.") else values

    return {name: ops.concatenate([values, again(name, values)], axis=0) for name, values in inputs.items()}


def divergence(head: Head, one: Any, other: Any, weights: Any, inputs: Mapping[str, Any]) -> Any:
    """The sum over a head's items, by weight, of the mean of both Kullback-Leibler divergences between its two outputs
    (of regressions, of the squared difference); 0 for a kind that no teacher could teach.

    A cross-entropy against the other's answers is their divergence and their entropy, which is the cross-entropy
    against themselves.
    """
    if head.answer_shape is None:
        return 0.0

    def from_to(outputs: Any, told: Any) -> Any:
        answers = head.answer(told, None, inputs)
        return head.teacher_loss(outputs, answers, weights)[0] - head.teacher_loss(told, answers, weights)[0]

    return (from_to(one, other) + from_to(other, one)) / 2
