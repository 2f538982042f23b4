"""What each task has of its own inside the shared encoder, and what a task may not change.

Rows hold segments of different tasks, so everything is per token: `tasks` `(…, tasks)` is float, 1 in the column of the
token's task and 0 elsewhere (padding: 0 throughout). New weights start at 0: at first nothing differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keras import layers, ops


class TaskAdapter(layers.Layer):
    """`x + up(activation(down(x)))` with weights of each task's own (Houlsby et al. 2019; Stickland & Murray 2019).

    All tasks are computed at once, `dim` columns each, and the other tasks' columns are put to 0: two dense products
    instead of weights gathered for every token.
    """

    def __init__(self, tasks: int, dim: int, hidden_dim: int, activation: Callable, **kwargs):
        super().__init__(**kwargs)
        self.tasks, self.dim, self.hidden_dim = tasks, dim, hidden_dim
        self.down = layers.Dense(
            tasks * dim, activation, kernel_initializer="he_normal", dtype=self.dtype_policy, name="down"
        )
        self.up = layers.Dense(
            hidden_dim, use_bias=False, kernel_initializer="zeros", dtype=self.dtype_policy, name="up"
        )

    def build(self, states_shape) -> None:
        self.down.build(states_shape)
        self.up.build((None, self.tasks * self.dim))
        self.up_bias = self.add_weight(name="up_bias", shape=(self.tasks, self.hidden_dim), initializer="zeros")

    def call(self, states, tasks):
        """States `(tokens, hidden_dim)` and `tasks` `(tokens, tasks)` to states; padding keeps its own."""
        of_tasks = ops.reshape(self.down(states), (-1, self.tasks, self.dim))
        own = ops.reshape(of_tasks * ops.expand_dims(tasks, -1), (-1, self.tasks * self.dim))
        return states + self.up(own) + ops.matmul(tasks, self.up_bias)


class TaskLayerNorm(layers.LayerNormalization):
    """LayerNorm whose gain and bias are, for each of `tasks`, the shared ones plus its own; of 0 tasks a plain one."""

    def __init__(self, tasks: int, **kwargs):
        super().__init__(**kwargs)
        self.tasks = tasks

    def build(self, states_shape) -> None:
        super().build(states_shape)
        if self.tasks:
            shape = (self.tasks, states_shape[-1])
            self.task_gamma = self.add_weight(name="task_gamma", shape=shape, initializer="zeros")
            self.task_beta = self.add_weight(name="task_beta", shape=shape, initializer="zeros")

    def call(self, states, tasks=None):
        """States `(…, hidden_dim)` and, where there are tasks, `tasks` `(…, tasks)` to states."""
        gamma, beta = self.gamma, self.beta
        if self.tasks:
            gamma, beta = gamma + ops.matmul(tasks, self.task_gamma), beta + ops.matmul(tasks, self.task_beta)
        return standardized(ops.cast(states, self.compute_dtype), self.epsilon) * gamma + beta


def standardized(states, epsilon: float):
    """States `(…, hidden_dim)`, each less its mean and over its deviation.

    Its gradient is written out (Ba et al. 2016), from the outcome and the deviation alone: those of its single
    operations hold more arrays as large as the states.
    """

    @ops.custom_gradient
    def forward(states):
        centered = states - ops.mean(states, axis=-1, keepdims=True)
        scale = ops.rsqrt(ops.mean(ops.square(centered), axis=-1, keepdims=True) + epsilon)
        normed = centered * scale

        def backward(*gradients, upstream=None):
            (gradient,) = gradients or (upstream,)
            along = ops.mean(gradient * normed, axis=-1, keepdims=True)
            return scale * (gradient - ops.mean(gradient, axis=-1, keepdims=True) - normed * along)

        return normed, backward

    return forward(states)


def is_own(path: str) -> bool:
    """Whether a variable of the encoder belongs to single tasks; the others are shared by all."""
    return "/task_" in path


def frozen_blocks(trainable: str, num_layers: int) -> int:
    """How many blocks, counted from below, `trainable` (`all`, `heads` or `last:<n>`) keeps from learning.

    The embeddings are the first block and each layer is one; `num_layers + 1` means the pooler too.
    """
    if trainable == "all":
        return 0
    return num_layers + 1 - (0 if trainable == "heads" else int(trainable.removeprefix("last:")))


def stop_gradients(states, tasks, stopped: Sequence[bool]):
    """Returns `states` `(items, hidden_dim)` as they are; no gradient passes those whose task is `stopped`.

    `tasks` `(items, tasks)`; `stopped` has one entry a task.
    """
    columns = ops.convert_to_tensor([[float(stop)] for stop in stopped], dtype=tasks.dtype)
    return ops.where(ops.matmul(tasks, columns) > 0, ops.stop_gradient(states), states)
