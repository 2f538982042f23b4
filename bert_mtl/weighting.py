"""How the losses of several heads become one gradient: by weights, fixed or adapted, or by surgery on the gradients.

Each kind is a layer, so that what it has learned is saved and resumed with the model. Surgery is a pure function of the
gradients' inner products: what comes out is one factor for each head's gradient, so no long vectors are ever made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

if TYPE_CHECKING:
    from bert_mtl.config import WeightingConfig

TINY = 1e-30  # makes 0 / 0 a 0
MOST_PROGRESS = 10.0  # of GradNorm: a first loss that happened to be near 0 does not rule all factors
LEAST_FACTOR = 0.01  # of GradNorm: however large a step is, no factor becomes 0 or negative
LEAST_SINE = 1e-3  # of GradVac: no gradient is turned to another's very direction, which would take an endless one


def make_weighting(
    config: WeightingConfig, heads: Mapping[str, float], seed: int, norm_variables: Sequence[Any] | None = None
) -> Weighting:
    """The layer of `weighting.kind`; the arguments are those of `Weighting`."""
    return WEIGHTINGS[config.kind](config, heads, seed, norm_variables)


class Weighting(keras.layers.Layer):
    """Weights that stay as configured; the other kinds override what differs.

    The total loss is the sum over heads of `base * factor * share * loss`: `base` is `heads.<head>.weight`, `factor`
    what the kind adds, and `share` keeps the mixture's proportions. A head with share 0 changes no state.

    Args:
        config: the section `weighting`.
        heads: head -> its base weight; their order is that of all vectors `(heads,)`.
        seed: of the random order of heads in gradient surgery.
        norm_variables: where GradNorm measures gradients, by its paper the last shared layer; None takes all shared
            variables, which costs a backward pass a head.
    """

    def __init__(
        self,
        config: WeightingConfig,
        heads: Mapping[str, float],
        seed: int,
        norm_variables: Sequence[Any] | None = None,
    ):
        super().__init__(name="weighting", dtype="float32", autocast=False)
        self.config = config
        self.heads = list(heads)
        self.base = np.array(list(heads.values()), np.float32)
        self.seed = seed
        # A function, because a layer takes the variables among its attributes for its own.
        self.norm_variables = lambda shared: shared if norm_variables is None else norm_variables
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates the kind's state."""

    def gradients(
        self, tape: tf.GradientTape, losses: Sequence[Any], shares: Any, shared: Sequence[Any], own: Sequence[Any]
    ) -> tuple[Any, list]:
        """The total loss, a scalar, and the gradients of the shared and then of the own variables.

        Args:
            tape: the persistent tape, no longer recording, under which the losses were computed.
            losses: a float32 scalar for each head: the mean loss of its labelled examples, 0 where the batch has none.
                Not stacked to one tensor: so a head's backward pass leaves the other heads alone.
            shares: `(heads,)` share of the batch's examples that are labelled for the head.
            shared: variables that several heads' losses depend on.
            own: variables of single heads. A gradient that nothing leads to is zeros.
        """
        scales = shares * self.factors() * self.base
        return ops.sum(scales * ops.stack(losses)), backward(tape, losses, ops.unstack(scales), [*shared, *own])

    def factors(self) -> Any:
        """`(heads,)`: what the kind multiplies the base weights by in the next step."""
        return ops.ones(len(self.heads))

    def end_epoch(self) -> None:
        """To be called after every epoch of training."""

    def current(self) -> dict[str, float]:
        """Head -> the weight of its loss in the next step, base included, for logs."""
        return dict(zip(self.heads, (self.base * ops.convert_to_numpy(self.factors())).tolist(), strict=True))

    def state(self, name: str, *shape: int, initial: str = "zeros") -> Any:
        """A variable that no optimizer knows."""
        return self.add_weight(name=name, shape=shape, initializer=initial, trainable=False)


class Uncertainty(Weighting):
    """Uncertainty (Kendall et al. 2018): `loss / (2 s^2) + log(1 + s^2)`, with `s^2` learned for each head.

    The form of Liebel & Körner (2018), whose total stays positive, alike for all kinds of heads. The log variances
    descend at `learning_rate`: the encoder's optimizer, 1e-4 a step, would leave them about where they start.
    """

    def build(self, input_shape: Any = None) -> None:
        self.log_variances = self.state("log_variances", len(self.heads))

    def factors(self) -> Any:
        return 0.5 * ops.exp(-self.log_variances)

    def gradients(self, tape, losses, shares, shared, own):
        total, found = super().gradients(tape, losses, shares, shared, own)
        total = total + ops.sum(self.base * shares * ops.softplus(self.log_variances))
        slopes = ops.sigmoid(self.log_variances) - self.factors() * ops.stack(losses)
        self.log_variances.assign_sub(self.config.learning_rate * self.base * shares * slopes)
        return total, found


class DynamicWeightAverage(Weighting):
    """Dynamic weight average (Liu et al. 2019): heads whose loss fell least between the last two epochs count more.

    The factors sum to the number of heads; they are 1 in the first two epochs.
    """

    def build(self, input_shape: Any = None) -> None:
        self.sums = self.state("sums", 2, len(self.heads))  # in this epoch: of share * loss, and of share
        self.means = self.state("means", 2, len(self.heads))  # loss of the last epoch, of the one before; 0: none yet

    def factors(self) -> Any:
        last, before = self.means[0], self.means[1]
        ratios = ops.where(before > 0, last / ops.maximum(before, TINY), 1.0)
        return len(self.heads) * ops.softmax(ratios / self.config.temperature)

    def gradients(self, tape, losses, shares, shared, own):
        self.sums.assign_add(ops.stack([shares * ops.stack(losses), shares]))
        return super().gradients(tape, losses, shares, shared, own)

    def end_epoch(self) -> None:
        losses, shares = self.sums[0], self.sums[1]
        moved = ops.stack([losses / ops.maximum(shares, TINY), self.means[0]])
        self.means.assign(ops.where(shares > 0, moved, self.means))
        self.sums.assign(ops.zeros_like(self.sums))


class GradNorm(Weighting):
    """GradNorm (Chen et al. 2018): factors learned so that the heads' gradients have norms of like size, a larger one
    for a head that learns slower than the others; they sum to the number of heads.

    Norms are those of `factor * loss`: base weights and shares multiply what comes out, and keep their meaning. The
    first loss of a head stands for its initial one.
    """

    def build(self, input_shape: Any = None) -> None:
        self.learned = self.state("factors", len(self.heads), initial="ones")
        self.first_losses = self.state("first_losses", len(self.heads))  # 0: none yet

    def factors(self) -> Any:
        return self.learned

    def gradients(self, tape, losses, shares, shared, own):
        result = super().gradients(tape, losses, shares, shared, own)
        variables, values = self.norm_variables(shared), ops.stack(losses)
        norms = ops.stack([norm(backward(tape, [loss], [1.0], variables)) for loss in losses])
        present = ops.convert_to_tensor(shares) > 0
        self.first_losses.assign(ops.where(present & ops.equal(self.first_losses, 0), values, self.first_losses))
        progress = ops.clip(values / ops.maximum(self.first_losses, TINY), 0.0, MOST_PROGRESS)
        alpha, rate = self.config.alpha, self.config.learning_rate
        self.learned.assign(gradnorm(self.factors(), norms, progress, present, alpha, rate))
        return result


class Surgery(Weighting):
    """One backward pass a head, then `combine` says how much of each head's gradient the shared variables get."""

    def build(self, input_shape: Any = None) -> None:
        self.seeds = keras.random.SeedGenerator(self.seed)

    def combine(self, products: Any, order: Any) -> Any:
        """`(heads,)` factors, from the inner products `(heads, heads)` of the gradients and a random order."""
        raise NotImplementedError

    def gradients(self, tape, losses, shares, shared, own):
        scales = shares * self.base
        each = zip(losses, ops.unstack(scales), strict=True)
        by_head = [backward(tape, [loss], [scale], shared) for loss, scale in each]
        by_variable = list(zip(*by_head, strict=True))
        products = sum(map(inner_products, by_variable), start=ops.zeros((len(self.heads), len(self.heads))))
        factors = ops.unstack(self.combine(products, self._order()))
        mixed = [sum(f * g for f, g in zip(factors, found, strict=True)) for found in by_variable]
        alone = backward(tape, losses, ops.unstack(scales), own)
        return ops.sum(scales * ops.stack(losses)), mixed + alone

    def _order(self) -> Any:
        """`(heads - 1, heads)`: row after row, the other head whose gradient each head's own meets next."""
        heads = len(self.heads)
        ranks = keras.random.uniform((heads, heads), seed=self.seeds) + 2 * ops.eye(heads)  # itself comes last
        return ops.transpose(ops.argsort(ranks, axis=1)[:, :-1])


class PCGrad(Surgery):
    """PCGrad (Yu et al. 2020): each head's gradient loses its part against every other head's."""

    def combine(self, products: Any, order: Any) -> Any:
        return pcgrad(products, order)


class GradVac(Surgery):
    """Gradient vaccine (Wang et al. 2021): each head's gradient is turned towards every other head's until their cosine
    is the usual one of this pair, a moving average."""

    def build(self, input_shape: Any = None) -> None:
        super().build()
        self.cosines = self.state("cosines", len(self.heads), len(self.heads))

    def combine(self, products: Any, order: Any) -> Any:
        factors, deviations = gradvac(products, order, self.cosines)
        self.cosines.assign_add(self.config.beta * deviations)
        return factors


WEIGHTINGS: dict[str, type[Weighting]] = {
    "static": Weighting,
    "uncertainty": Uncertainty,
    "dwa": DynamicWeightAverage,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
}


def backward(tape: tf.GradientTape, losses: Sequence[Any], scales: Sequence[Any], variables: Sequence[Any]) -> list:
    """Gradients of the sum of `scale * loss` for every variable."""
    found = tape.gradient(list(losses), list(variables), output_gradients=list(scales))
    # TensorFlow's own UnconnectedGradients.ZERO fails on Keras variables. Rows of a table that were read several times
    # are summed here: clipping would take the norm of each reading by itself.
    return [
        ops.zeros_like(variable) if gradient is None else tf.convert_to_tensor(gradient)
        for variable, gradient in zip(variables, found, strict=True)
    ]


def norm(gradients: Sequence[Any]) -> Any:
    """Euclidean norm of gradients as one long vector."""
    return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients]))


def inner_products(gradients: Sequence[Any]) -> Any:
    """`(heads, heads)` inner products of the heads' gradients of one variable."""
    flat = ops.stack([ops.reshape(gradient, (-1,)) for gradient in gradients])
    return ops.matmul(flat, ops.transpose(flat))


def gradnorm(factors: Any, norms: Any, progress: Any, present: Any, alpha: float, learning_rate: float) -> Any:
    """GradNorm's next factors `(heads,)`.

    Args:
        factors: those of this step.
        norms: `(heads,)` norms of the gradients of the heads' losses, not multiplied by the factors.
        progress: `(heads,)` losses over the initial ones.
        present: `(heads,)` bool; the others keep their factors.
    """

    def total(values: Any) -> Any:
        return ops.sum(ops.where(present, values, 0.0))

    count = ops.maximum(total(1.0), 1.0)
    rates = progress / ops.maximum(total(progress) / count, TINY)
    targets = total(factors * norms) / count * rates**alpha  # a constant: nothing is learned from its own change
    slopes = ops.sign(factors * norms - targets) * norms
    moved = ops.maximum(factors - learning_rate * slopes, LEAST_FACTOR)
    moved = moved * total(factors) / ops.maximum(total(moved), TINY)
    return ops.where(present, moved, factors)


def pcgrad(products: Any, order: Any) -> Any:
    """PCGrad's factors of the heads' gradients `(heads,)` in their sum.

    Args:
        products: `(heads, heads)` inner products of the gradients.
        order: `(heads - 1, heads)`: in step `s`, head `i` meets the gradient of head `order[s, i]`.
    """
    heads = products.shape[0]
    parts = ops.eye(heads)  # row i: head i's changed gradient as a sum of the gradients
    for others in _steps(order):
        met = ops.one_hot(others, heads)
        dots = ops.sum(_images(parts, products) * met, axis=1)
        amounts = ops.minimum(dots, 0.0) / ops.maximum(ops.take(ops.diagonal(products), others), TINY)
        parts = parts - ops.expand_dims(amounts, 1) * met
    return ops.sum(parts, axis=0)


def gradvac(products: Any, order: Any, targets: Any) -> tuple[Any, Any]:
    """Gradient vaccine's factors `(heads,)`, see `pcgrad`, and how far the cosines met are from `targets`
    `(heads, heads)`, 0 where one of the two gradients is 0."""
    heads = products.shape[0]
    parts, deviations = ops.eye(heads), ops.zeros((heads, heads))
    for others in _steps(order):
        met = ops.one_hot(others, heads)
        images = _images(parts, products)
        norms = ops.sqrt(ops.maximum(ops.sum(images * parts, axis=1), 0.0))
        others_norms = ops.sqrt(ops.take(ops.diagonal(products), others))
        exist = norms * others_norms > TINY
        cosines = ops.clip(ops.sum(images * met, axis=1) / ops.maximum(norms * others_norms, TINY), -1.0, 1.0)
        goals = ops.sum(targets * met, axis=1)
        goal_sines = ops.maximum(_sine(goals), LEAST_SINE)
        amounts = norms * (goals * _sine(cosines) - cosines * goal_sines) / ops.maximum(others_norms * goal_sines, TINY)
        parts = parts + ops.expand_dims(ops.where(exist & (cosines < goals), amounts, 0.0), 1) * met
        deviations = deviations + ops.expand_dims(ops.where(exist, cosines - goals, 0.0), 1) * met
    return ops.sum(parts, axis=0), deviations


def _steps(order: Any) -> list:
    return [order[step] for step in range(order.shape[0])]


def _images(parts: Any, products: Any) -> Any:
    """Inner products of the changed gradients with the gradients; a matrix product, but in full float32 on any GPU."""
    return ops.sum(ops.expand_dims(parts, 2) * ops.expand_dims(products, 0), axis=1)


def _sine(cosines: Any) -> Any:
    return ops.sqrt(ops.maximum(1.0 - ops.square(cosines), 0.0))
