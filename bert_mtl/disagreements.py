"""Examples that groups of runs answer differently: what to read to learn where one is better."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bert_mtl.answer_table import HeadAnswers

SHOWN = 200  # examples of a head


def disagreements(texts: Sequence[tuple[str, ...]], groups: Sequence[Sequence[HeadAnswers]]) -> list[dict]:
    """At most `SHOWN` examples that groups answer differently: first those that some group alone has right, or whose
    numbers are furthest apart. A group answers what most of its runs do (the first of those, where they are as many);
    numbers by their mean. Of a group without runs nothing is said."""
    own = [group for group in groups if group]
    label = own[0][0].label.to_pylist()
    numeric = own[0][0].right.null_count == len(label)
    said, right, apart = (_numbers if numeric else _votes)(own, len(label))
    order, places = np.argsort(-apart, kind="stable"), [place for place, group in enumerate(groups) if group]
    return [
        dict(zip(("text", "text_b"), texts[i], strict=False))
        | {"label": label[i]}
        | {"answers": _placed([row[i] for row in said], places, len(groups))}
        | {"right": _placed([row[i] for row in right], places, len(groups))}
        for i in order[: np.count_nonzero(apart)][:SHOWN]
    ]


def _numbers(groups: Sequence[Sequence[HeadAnswers]], examples: int) -> tuple[list, list, np.ndarray]:
    """By group what is answered, whether it is right (unknown), and how far apart the groups are `(examples,)`."""
    means = [np.mean([run.statistics[:, 0] for run in group], axis=0) for group in groups]
    apart = np.nan_to_num(np.ptp(means, axis=0))
    return [[f"{value:.4g}" for value in values] for values in means], [[None] * examples] * len(groups), apart


def _votes(groups: Sequence[Sequence[HeadAnswers]], examples: int) -> tuple[list, list, np.ndarray]:
    """As `_numbers`: 1.5 apart where a group alone is right, 0.5 where the groups are wrong in different ways."""
    voted = [_voted(group) for group in groups]
    said, right = [each[0] for each in voted], [each[1] for each in voted]
    split = np.array([len({bool(each) for each in row}) > 1 for row in zip(*right, strict=True)])
    unlike = np.array([len(set(row)) > 1 for row in zip(*said, strict=True)])
    return said, right, split + 0.5 * unlike


def _voted(runs: Sequence[HeadAnswers]) -> tuple[list[str | None], list[bool | None]]:
    """What most runs answer to each example, and whether it is right."""
    if len(runs) == 1:
        return runs[0].answer.to_pylist(), runs[0].right.to_pylist()
    said = [run.answer.to_pylist() for run in runs]
    right = [run.right.to_pylist() for run in runs]
    most = [Counter(row).most_common(1)[0][0] for row in zip(*said, strict=True)]
    first = [row.index(best) for row, best in zip(zip(*said, strict=True), most, strict=True)]
    return most, [right[run][i] for i, run in enumerate(first)]


def _placed(values: Sequence, places: Sequence[int], count: int) -> list:
    found = dict(zip(places, values, strict=True))
    return [found.get(i) for i in range(count)]
