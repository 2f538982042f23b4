"""Batches of neighbours in length, as transformers' `group_by_length` makes them. NumPy only."""

import numpy as np


def grouped(lengths: np.ndarray, batch: int, megabatch: int, random: np.random.Generator) -> list[np.ndarray]:
    """Batches of places in `lengths`: shuffled, cut into megabatches of `megabatch` batches, each sorted, longest
    first. What does not fill a batch is left out, unless there is nothing else."""
    order, size = random.permutation(len(lengths)), batch * megabatch
    order = order[: max(len(order) // batch * batch, min(len(order), batch))]
    parts = [order[at : at + size] for at in range(0, len(order), size)]
    ordered = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in parts])
    return [ordered[at : at + batch] for at in range(0, len(ordered), batch)]


def grouped_by_task(
    lengths: np.ndarray, task: np.ndarray, batch: int, megabatch: int, random: np.random.Generator
) -> list[np.ndarray]:
    """Batches of one task each, in random order: every task has as many as its examples fill."""
    batches = []
    for number in np.unique(task):
        places = np.flatnonzero(task == number)
        batches += [places[chosen] for chosen in grouped(lengths[places], batch, megabatch, random)]
    return [batches[i] for i in random.permutation(len(batches))]


def padded(flat: np.ndarray, splits: np.ndarray, chosen: np.ndarray, multiple: int, filler: int) -> np.ndarray:
    """`(examples, length)` of values `(tokens,)`, the longest rounded up to a multiple of `multiple`."""
    lengths = splits[chosen + 1] - splits[chosen]
    length = -(-int(lengths.max()) // multiple) * multiple
    places = np.arange(length)
    there = places < lengths[:, None]
    taken = np.minimum(splits[chosen][:, None] + places, len(flat) - 1)
    return np.where(there, flat[taken], filler)
