"""A graph answers after every pass as before it, from the nodes that the pass is to leave."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.frozen import Frozen, freeze
from bert_mtl.graph_passes import (
    PASSES,
    fold_constants,
    merge_duplicates,
    optimised,
    remove_identities,
    sort_by_execution_order,
    strip_unused,
)
from bert_mtl.quantisation import quantised

DICE = np.random.default_rng(0)
TABLE, WEIGHTS = (DICE.normal(size=size).astype(np.float32) for size in ((128, 64), (64, 128)))


def graph(build: Callable[[tf.Tensor], object], outputs: str = "answer") -> Frozen:
    """What `build` makes of a placeholder `x` of floats, with the output it is to name."""
    with tf.Graph().as_default() as made:
        build(tf.compat.v1.placeholder(tf.float32, [None, None], name="x"))
    return Frozen(made.as_graph_def(), ["x"], outputs.split())


def names(frozen: Frozen) -> list[str]:
    return [node.name for node in frozen.graph.node]


def answers(frozen: Frozen, *inputs: np.ndarray) -> list[np.ndarray]:
    with tf.Graph().as_default() as made:
        tf.import_graph_def(frozen.graph, name="")
    with tf.compat.v1.Session(graph=made) as session:
        feeds = {f"{name}:0": values for name, values in zip(frozen.inputs, inputs, strict=True)}
        return session.run([f"{name}:0" for name in frozen.outputs], feeds)


def test_nodes_that_nobody_reads_go_and_inputs_stay():
    def build(x):
        unread = tf.compat.v1.placeholder(tf.float32, [], name="unread")
        tf.sin(unread, name="lost")
        tf.cos(tf.sin(x, name="middle"), name="answer")

    made = graph(build)._replace(inputs=["x", "unread"])
    assert names(strip_unused(made)) == ["x", "unread", "middle", "answer"]
    assert strip_unused(strip_unused(made)) == strip_unused(made)


def test_identities_of_every_kind_go_and_outputs_stay():
    def build(x):
        first, second = tf.raw_ops.IdentityN(input=[tf.identity(x), tf.stop_gradient(x)])
        with tf.control_dependencies([tf.no_op()]):
            total = tf.add(first, tf.raw_ops.PreventGradient(input=second), name="total")
        tf.identity(tf.add(tf.tanh(first, name="read_twice"), total, name="sum"), name="answer")
        tf.identity(x, name="same")

    found = remove_identities(graph(build, "answer same"))
    assert sorted(names(found)) == ["answer", "read_twice", "same", "sum", "total", "x"]
    inputs = {node.name: list(node.input) for node in found.graph.node}
    assert (inputs["total"], inputs["read_twice"]) == (["x", "x"], ["x"])
    assert (inputs["answer"], inputs["same"]) == (["sum"], ["x"])


def test_what_constants_decide_is_computed_once():
    def build(x):
        folded = tf.sqrt(tf.constant([3.0, 8.0]) + tf.constant(1.0), name="folded")
        tf.multiply(x, folded, name="answer")

    found = fold_constants(graph(build))
    assert {node.name: node.op for node in found.graph.node} == {"x": "Placeholder", "folded": "Const", "answer": "Mul"}
    (folded,) = (tf.make_ndarray(node.attr["value"].tensor) for node in found.graph.node if node.op == "Const")
    np.testing.assert_allclose(folded, [2, 3], rtol=1e-6)


def test_equal_nodes_become_one_but_for_outputs():
    def build(x):
        one, other, unlike = (tf.multiply(x, tf.constant(number)) for number in (2.0, 2.0, 3.0))
        total = tf.add(tf.add(one, other), unlike)
        for name in ("answer", "again"):
            tf.negative(total, name=name)

    made = graph(build, "answer again")
    found = merge_duplicates(made)
    assert [sum(node.op == op for node in found.graph.node) for op in ("Const", "Mul", "AddV2", "Neg")] == [2, 2, 2, 2]
    x = np.float32([[1, 2]])
    np.testing.assert_allclose(answers(found, x), answers(made, x))
    np.testing.assert_allclose(answers(found, x), [[[-7, -14]]] * 2)


def test_nodes_stand_behind_what_they_read_and_else_by_name():
    def build(x):
        tf.add(tf.sin(x, name="b"), tf.cos(tf.sin(x, name="c"), name="a"), name="answer")

    made = graph(build)
    for order in (made.graph.node[:], made.graph.node[::-1]):
        shuffled = made._replace(graph=type(made.graph)(node=order, versions=made.graph.versions))
        assert names(sort_by_execution_order(shuffled)) == ["x", "b", "c", "a", "answer"]


def layer(x: tf.Tensor) -> tf.Tensor:
    """Rows of a table, and their products with a matrix."""
    table = tf.constant(TABLE, name="table")
    rows = tf.gather(table, tf.cast(x, tf.int32), name="rows")
    return tf.matmul(tf.reshape(rows, [-1, 64]), tf.constant(WEIGHTS, name="weights"), name="answer")


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.5), ("int8", 0.25)])
def test_quantised_matrices_are_parts_of_the_size_and_rows_are_converted_behind_their_gather(precision, share):
    made = optimised(graph(layer, "rows answer"))
    before = made.graph.SerializeToString(deterministic=True)
    found = quantised(made, precision)
    assert made.graph.SerializeToString(deterministic=True) == before
    assert found.graph.ByteSize() / made.graph.ByteSize() == pytest.approx(share, abs=0.04)
    ops = {node.name: (node.op, *node.input[:2]) for node in found.graph.node}
    restored = {"fp16": ("Cast", "rows/stored"), "int8": ("Mul", "rows/float", "table/scale")}
    assert ops["rows"] == restored[precision] and ops["rows/stored"][:2] == ("GatherV2", "table/stored")
    assert "table" not in ops and set(names(sort_by_execution_order(found))) == set(names(found))
    rows, products = answers(found, np.arange(128, dtype=np.float32)[None])
    step = {"fp16": np.abs(TABLE) * 2**-11, "int8": np.abs(TABLE).max(axis=0) / 127 / 2}[precision]
    assert (np.abs(rows[0] - TABLE) <= step * 1.0001).all()
    assert 0 < np.abs(products - TABLE @ WEIGHTS).max() < {"fp16": 0.03, "int8": 0.5}[precision]


def test_small_and_empty_columns_are_kept_exactly():
    weights = np.zeros((4096, 2), np.float32)
    weights[:, 0] = np.linspace(-127, 127, 4096).round()
    with_bias = lambda x: tf.add(tf.matmul(x, tf.constant(weights)), tf.constant([0.1, 0.2]), name="answer")  # noqa: E731
    x = np.eye(4096, dtype=np.float32)[::512]
    np.testing.assert_array_equal(
        answers(quantised(graph(with_bias), "int8"), x)[0], weights[::512] + np.float32([0.1, 0.2])
    )


@pytest.fixture(scope="module")
def encoder() -> Frozen:
    """A tiny encoder with random weights, frozen."""
    made = BertEncoder(EncoderConfig(128, 32, 2, 2, 64, max_positions=128))
    ids = ("token_ids", "type_ids", "segment_ids", "position_ids")
    specs = [tf.TensorSpec((None, None), tf.int32, name) for name in ids]
    call = tf.function(lambda *inputs: {"states": tf.identity(made(dict(zip(ids, inputs, strict=True))))}, specs)
    function = call.get_concrete_function()
    dice = np.random.default_rng(2)
    for variable in made.weights:
        variable.assign(variable + dice.normal(scale=0.2, size=variable.shape))
    return freeze(function)


def inputs_of(shape: tuple[int, int]) -> list[np.ndarray]:
    token_ids = np.random.default_rng(3).integers(0, 128, shape).astype(np.int32)
    return [token_ids, 0 * token_ids, 0 * token_ids + 1, 0 * token_ids + np.arange(shape[1], dtype=np.int32)]


def after_each_pass(frozen: Frozen) -> Iterator[Frozen]:
    for run in PASSES.values():
        yield (frozen := run(frozen))


def test_a_model_answers_alike_after_every_pass_whatever_the_shape(encoder):
    graphs = [encoder, *after_each_pass(encoder)]
    for shape in ((1, 3), (4, 9)):
        expected, *found = (answers(frozen, *inputs_of(shape))[0] for frozen in graphs)
        assert expected.shape == (*shape, 32) and expected.std() > 0.1
        for states in found:
            np.testing.assert_allclose(states, expected, atol=1e-5)
    sizes = [len(frozen.graph.node) for frozen in graphs]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.7 * sizes[0]
    assert optimised(encoder).graph.SerializeToString(deterministic=True) == graphs[-1].graph.SerializeToString(
        deterministic=True
    )


def test_a_quantised_model_answers_much_alike(encoder):
    made, inputs = optimised(encoder), inputs_of((4, 9))
    (expected,) = answers(made, *inputs)
    for precision, tolerance in (("fp16", 0.01), ("int8", 0.2)):
        (found,) = answers(quantised(made, precision), *inputs)
        assert 0 < np.abs(found - expected).max() < tolerance
