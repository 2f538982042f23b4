"""Which examples make up train, dev and test, and in which order they are stored: pure functions of `data.seed`."""

import numpy as np

from bert_mtl.config import DataConfig
from bert_mtl.tasks import DataError


def split(strata: dict[str, np.ndarray], data: DataConfig) -> dict[str, tuple[str, np.ndarray]]:
    """Part -> (part of the source it comes from, rows there in shuffled order), for train, dev and test.

    `strata` holds the group of each row of the source's own parts (its label, where it has one). Missing parts are
    taken from train, the shares of groups kept; `data.limit` then shortens train.

    Raises:
        DataError: a part would be empty.
    """
    random = np.random.default_rng(data.seed)
    chosen = {part: (part, random.permutation(len(groups))) for part, groups in sorted(strata.items())}
    total, rows = len(strata["train"]), chosen["train"][1]
    for part, fraction in (("test", data.test_fraction), ("dev", data.dev_fraction)):
        if part not in chosen:
            taken = stratified(strata["train"][rows], fraction * total)
            if not len(taken):
                got = f"got {fraction} of {total} rows. Give more rows, or a file for {part} in the source's path."
                raise DataError(f"data.{part}_fraction must give {part} an example; {got}")
            chosen[part] = ("train", rows[taken])
            rows = np.delete(rows, taken)
    if not len(rows):
        raise DataError(f"the train part must keep an example beside dev and test; got {total} in all. Give more data.")
    if data.limit is not None and data.limit < len(rows):
        rows = rows[stratified(strata["train"][rows], data.limit)]
    return chosen | {"train": ("train", rows)}


def stratified(strata: np.ndarray, size: float) -> np.ndarray:
    """Sorted positions of `size` (rounded) rows, the first of each group, such that every group keeps its share."""
    names, counts = np.unique(strata, return_counts=True)
    exact = counts * (size / len(strata))
    quota = np.floor(exact).astype(int)
    largest_remainders = np.argsort(quota - exact, kind="stable")
    quota[largest_remainders[: round(size) - quota.sum()]] += 1
    picked = [np.flatnonzero(strata == name)[:count] for name, count in zip(names, quota, strict=True)]
    return np.sort(np.concatenate(picked))
