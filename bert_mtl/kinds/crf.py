"""Linear-chain conditional random fields (Lafferty et al. 2001) over the words of packed rows.

A chain is the words of one segment. A sequence of tags for it scores start[first tag] + end[last tag] +
transitions[tag, next tag] along it + the emissions of its tags, and is as likely as exp(score) among all sequences.
"""

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from bert_mtl.kinds.head import DenseLayer, LayerContext

TINY = 1e-30  # keeps float32's logarithm finite


class Chains(NamedTuple):
    """The words of all rows moved to the front, so that neighbours in a chain are neighbours in the row; float32.

    `emissions` and `gold` (the given tags, one-hot) are `(rows, length, tags)`, zero behind the words. `real` marks the
    words, `first` and `last` the ends of chains, `(rows, length, 1)` each; `linked` `(rows, length - 1, 1)` the words
    whose next one belongs to their chain. What stands behind the words counts as chains of one that are not real.
    """

    emissions: Any
    gold: Any
    real: Any
    first: Any
    last: Any
    linked: Any


class CrfLayer(DenseLayer):
    """A dense layer for emissions `(…, tags)` that owns `transitions` `(tags, tags)`, `start` and `end` `(tags,)`."""

    def __init__(self, context: LayerContext, tags: int):
        self.tags = tags
        super().__init__(context, tags)

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self.transitions = self.add_weight(name="transitions", shape=(self.tags, self.tags), initializer="zeros")
        self.start = self.add_weight(name="start", shape=(self.tags,), initializer="zeros")
        self.end = self.add_weight(name="end", shape=(self.tags,), initializer="zeros")

    def chain(self) -> list[Any]:
        """The values of `transitions`, `start` and `end`: `ops.stack` takes no variables."""
        return [each.value for each in (self.transitions, self.start, self.end)]


def negative_log_likelihood(
    emissions: Any, labels: Any, words: Any, segment_ids: Any, transitions: Any, start: Any, end: Any
) -> Any:
    """Sum over all chains of -log p(tags of the chain), a scalar.

    Args:
        emissions: `(rows, length, tags)` float32.
        labels: `(rows, length)` int32, tag ids where `words`; anything elsewhere.
        words: `(rows, length)` bool: the tokens that are links of a chain.
        segment_ids: `(rows, length)` int32; the tokens of a chain, and no others of the row, share theirs.
    """
    chains = gather(emissions, labels, words, segment_ids)

    def score(chosen: Any, pairs: Any) -> Any:
        ends = chains.first * start + chains.last * end
        return ops.sum(chosen * (chains.emissions + ends)) + ops.sum(pairs * transitions)

    given = score(chains.gold, _products(chains.gold[:, :-1] * chains.linked, chains.gold[:, 1:]))
    # Not even seen by a persistent tape, which would keep all that the scan does; XLA does not compile that.
    fixed = Chains(*map(ops.stop_gradient, chains)), *map(ops.stop_gradient, (transitions, start, end))
    chosen, pairs, log_partition = expectations(*fixed)
    expected = score(chosen, pairs)
    # log Z as a value, with the gradient that it has: expected counts. Going back through the scan is slower by far.
    return ops.stop_gradient(log_partition - expected) + expected - given


def gather(emissions: Any, labels: Any, words: Any, segment_ids: Any) -> Chains:
    """The chains of packed rows; arguments as for `negative_log_likelihood`."""
    length, tags = ops.shape(emissions)[1], emissions.shape[2]
    places = ops.arange(length)  # in the keys, so that equal ones need no stable sort
    order = ops.argsort(ops.where(words, places, places + length), axis=1)
    words, labels, segments = (ops.take_along_axis(each, order, axis=1) for each in (words, labels, segment_ids))
    linked = ops.cast((segments[:, 1:] == segments[:, :-1]) & words[:, 1:], "float32")
    linked, real = ops.expand_dims(linked, 2), ops.expand_dims(words, 2)
    emissions = ops.take_along_axis(emissions, ops.expand_dims(order, 2), axis=1)
    return Chains(
        emissions=ops.where(real, emissions, 0.0),  # whatever stands elsewhere, infinity included, has no gradient
        gold=ops.where(real, ops.one_hot(ops.where(words, labels, 0), tags, dtype="float32"), 0.0),
        real=ops.cast(real, "float32"),
        first=1.0 - ops.pad(linked, [(0, 0), (1, 0), (0, 0)]),
        last=1.0 - ops.pad(linked, [(0, 0), (0, 1), (0, 0)]),
        linked=linked,
    )


def expectations(chains: Chains, transitions: Any, start: Any, end: Any) -> tuple[Any, Any, Any]:
    """Probabilities of each word's tags `(rows, length, tags)`, the expected number of each transition `(tags, tags)`,
    and the sum of all chains' log Z, by the forward-backward algorithm (Rabiner 1989). Not to be differentiated."""
    forward, backward = _reach(chains, transitions, start, end)
    through = forward + backward - chains.emissions
    log_partition = ops.logsumexp(through, axis=2, keepdims=True)  # of the chain that the word stands in
    chosen = chains.real * ops.exp(through - log_partition)
    before, after = forward[:, :-1], backward[:, 1:]
    top, next_top = (ops.max(each, axis=2, keepdims=True) for each in (before, after))
    scale = ops.exp(ops.where(chains.linked > 0, top + next_top - log_partition[:, 1:], -np.inf))
    pairs = ops.exp(transitions) * _products(scale * ops.exp(before - top), ops.exp(after - next_top))
    return chosen, pairs, ops.sum(chains.real * chains.last * log_partition)


def _reach(chains: Chains, transitions: Any, start: Any, end: Any) -> tuple[Any, Any]:
    """Log of the summed exp(score) of all sequences that lead to a tag of a word `(rows, length, tags)`: from the
    chain's first word, and from its last one back."""
    # The way back is the way there in a mirror, so one scan goes both.
    columns = ops.stack([chains.emissions, ops.flip(chains.emissions, 1)])
    begins = ops.stack([chains.first, ops.flip(chains.last, 1)])
    starts = ops.expand_dims(ops.stack([start, end]), 1)
    weights = ops.exp(ops.stack([transitions, ops.transpose(transitions)]))

    def step(reached: Any, word: Any) -> tuple[Any, Any]:
        emission, begin = word[..., :-1], word[..., -1:]
        # A product of matrices instead of a sum over `(rows, tags, tags)` logarithms.
        top = ops.max(reached, axis=2, keepdims=True)
        onward = top + ops.log(ops.maximum(ops.matmul(ops.exp(reached - top), weights), TINY))
        reached = ops.where(begin > 0, starts, onward) + emission
        return reached, reached

    # As one array, because Keras does not scan several of unknown length.
    words = ops.transpose(ops.concatenate([columns, begins], axis=-1), (2, 0, 1, 3))
    _, reached = ops.scan(step, ops.zeros_like(words[0, ..., :-1]), words)
    there, back = ops.unstack(ops.transpose(reached, (1, 2, 0, 3)), axis=0)
    return there, ops.flip(back, 1)


def _products(left: Any, right: Any) -> Any:
    """Sum over words of the outer products of `(rows, length, tags)` arrays: `(tags, tags)`."""
    return ops.tensordot(left, right, axes=((0, 1), (0, 1)))
