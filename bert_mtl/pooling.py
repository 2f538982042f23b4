"""How the token states of packed segments become one vector each."""

from keras import ops


def mean_states(states, segment_ids, segments: int):
    """Mean of each segment's token states.

    Args:
        states: `(rows, length, hidden_dim)`.
        segment_ids: `(rows, length)`, the 1-based number of the segment a token belongs to, 0 for padding.
        segments: how many segments the batch holds at most.

    Returns:
        `(segments, hidden_dim)` float32; zeros for numbers no token carries.
    """
    flat = ops.cast(ops.reshape(states, (-1, states.shape[-1])), "float32")
    numbers = ops.reshape(segment_ids, (-1,))
    sums = ops.segment_sum(flat, numbers, segments + 1)
    counts = ops.segment_sum(ops.ones_like(numbers, dtype="float32"), numbers, segments + 1)
    return (sums / ops.maximum(ops.expand_dims(counts, 1), 1.0))[1:]


def states_at(states, places):
    """The `(places, hidden_dim)` states at the flat `places` of `states` `(rows, length, hidden_dim)`."""
    return ops.take(ops.reshape(states, (-1, states.shape[-1])), places, axis=0)
