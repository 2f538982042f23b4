"""The graphs of a bundle: texts or token ids in, what every head answers out."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import tensorflow as tf

from bert_mtl.kinds import Head
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.tasks import Task
from bert_mtl.tokenization import Tokenizer

ID_INPUTS = ("token_ids", "type_ids", "segment_ids")
IDS = [tf.TensorSpec((None, None), tf.int32, name) for name in ID_INPUTS]
TEXTS, TEXTS_B = (tf.TensorSpec((None,), tf.string, name) for name in ("texts", "texts_b"))
LINE_BREAKS = "[\t\n\r]"  # training reads texts of one line
Answers = dict[str, tf.Tensor]


class Stage(NamedTuple):
    """A graph of the encoder's layers up to number `depth`, from those of the stage before, and of all heads there.

    The first `function` takes ID_INPUTS, the others `states` `(rows, length, hidden_dim)` float32 and `segment_ids`;
    each gives what the heads answer, and but for the last one `next_states`, the `states` of the next. Vectors are
    made of what else it gives: `layer_<number>` `(rows, length, hidden_dim)` for each of `layers` (0: the embeddings)
    and, with `pooled`, BERT's pooled output `pooled` `(rows, hidden_dim)`.
    """

    function: Any
    depth: int
    layers: list[int] = []
    pooled: bool = False

    @property
    def vectors(self) -> list[str]:
        """The names of what it gives for vectors."""
        return [*map(_layer_name, self.layers), *(["pooled"] if self.pooled else [])]


class Served(tf.Module):
    """A model as graphs, whose outputs are answers (`Head.answer`) by the heads' full names.

    All heads answer from one pass of the encoder; where the encoder reads the tasks, each task takes one.
        ids: token_ids, type_ids, segment_ids `(rows, length)` int32 (segment_ids: 1 on tokens, 0 on padding) to what
            all heads answer
        text: texts `(texts,)` to what the heads answer that can be asked about a single text
        pair: texts and texts_b `(texts,)` to what the heads answer that can be asked about two
        layers: as `ids`, to the states of all layers (as of `Stage`); nothing where the encoder reads the tasks, whose
            states then differ

    Heads of texts answer `(rows, …)`: labels' probabilities `(rows, labels)`, values `(rows,)`, vectors `(rows, dim)`.
    The vectors of a pair's two texts are `(texts, 2, dim)` in `pair`.
    Heads of tokens answer `(rows, length, tags)` in `ids`; in `text` `(texts, words, tags)`, words being what white
    space parts, with zeros for words that are not there or that truncation left out.
    Heads of masked places answer in `ids` alone: `(rows, length, n)`, zeros but at tokens that are [MASK].

    Args:
        pairs: names of the tasks that read pairs.
    """

    def __init__(self, model: MultiTaskModel, tokenizer: Tokenizer, tasks: Mapping[str, Task], pairs: Collection[str]):
        super().__init__(name="served")
        self.model = model
        self.tokenizer = tokenizer
        self.task_of = {head.name: task.number for task in tasks.values() for head in task.heads.values()}
        spoken = {task: [head.name for head in tasks[task].heads.values() if head.level != "mask"] for task in tasks}
        self.paired = [name for task in spoken if task in pairs for name in spoken[task]]
        self.single = [
            name for names in spoken.values() for name in names if name not in self.paired or model.heads[name].separate
        ]
        self.parts = {
            f"task_{task}": ("pair" if task in pairs else "text", names) for task, names in spoken.items() if names
        }

    def signatures(self) -> dict[str, Callable]:
        """`text`, `pair` (where a head answers in them), `ids`, `layers` (where it gives any); `task_<name>`: text or
        pair with the answers of one task alone; and `serving_default`: the first of them."""
        graphs = {"text": self.text} if self.single else {}
        graphs |= {"pair": self.pair} if self.paired else {}
        graphs |= {"ids": self.ids}
        parts = {name: _part(graphs[whole], names) for name, (whole, names) in self.parts.items()}
        layers = {} if self.model.encoder.config.reads_tasks else {"layers": self.layers}
        return {"serving_default": next(iter(graphs.values()))} | graphs | layers | parts

    def stages(self, exits: bool) -> list[Stage]:
        """What gives `ids` and `layers` in one; with `exits` in parts, one for each depth at which the model's heads
        answer."""
        depths = self.model.depths if exits else self.model.depths[-1:]
        if self.model.encoder.config.reads_tasks:
            return [Stage(self.ids.get_concrete_function(), depths[-1])]
        return [self._stage(before, depth) for before, depth in pairwise([0, *depths])]

    @tf.function(autograph=False, input_signature=[TEXTS])
    def text(self, texts) -> Answers:
        by_word = [name for name in self.single if self.model.heads[name].level == "token"]
        if not by_word:
            texts = tf.strings.regex_replace(texts, LINE_BREAKS, " ")
            return self._answers(self.tokenizer.encode(texts).token_ids, None, self.single)
        words = tf.strings.split(texts)
        encoded, numbers = self.tokenizer.encode_words(tf.strings.reduce_join(words, axis=-1, separator=" "))
        answers = self._answers(encoded.token_ids, None, self.single)
        count = tf.reduce_max(tf.concat([[0], words.row_lengths()], axis=0))
        return answers | {name: _words_of(answers[name], numbers.to_tensor(-1), count) for name in by_word}

    @tf.function(autograph=False, input_signature=[TEXTS, TEXTS_B])
    def pair(self, texts, texts_b) -> Answers:
        apart = [name for name in self.paired if self.model.heads[name].separate]
        crossed = [name for name in self.paired if name not in apart]
        texts, texts_b = (tf.strings.regex_replace(each, LINE_BREAKS, " ") for each in (texts, texts_b))
        answers: Answers = {}
        if crossed:
            encoded = self.tokenizer.encode(texts, texts_b)
            answers |= self._answers(encoded.token_ids, encoded.second_start, crossed)
        if apart:
            token_ids, second_start, _ = self.tokenizer.encode(texts, texts_b, separate=True)
            places = tf.ragged.range(tf.cast(token_ids.row_lengths(), tf.int32), row_splits_dtype=tf.int64)
            first = places < tf.expand_dims(second_start, 1)
            rows = tf.concat([tf.ragged.boolean_mask(token_ids, mask) for mask in (first, ~first)], axis=0)
            found = self._answers(rows, None, apart)
            answers |= {name: tf.stack(tf.split(found[name], 2), axis=1) for name in apart}
        return answers

    @tf.function(autograph=False, input_signature=IDS)
    def ids(self, token_ids, type_ids, segment_ids) -> Answers:
        inputs = self._inputs(token_ids=token_ids, type_ids=type_ids, segment_ids=segment_ids)
        outputs: Answers = {}
        for task, names in self._passes():
            told = inputs | {"task": tf.fill(tf.shape(inputs["first_token"]), task)}
            outputs |= self.model(told, training=False, heads=names)
        return {name: _answer(head, outputs[name], inputs) for name, head in self.model.heads.items()}

    @tf.function(autograph=False, input_signature=IDS)
    def layers(self, token_ids, type_ids, segment_ids) -> Answers:
        if self.model.encoder.config.reads_tasks:
            return {}  # it is traced all the same
        inputs = self._inputs(token_ids=token_ids, type_ids=type_ids, segment_ids=segment_ids)
        return self._vectors(self._states(inputs, 0, self.model.depths[-1]), inputs)

    def _stage(self, before: int, depth: int) -> Stage:
        """The `Stage` behind layer number `before` (0: from ids)."""
        states_taken = tf.TensorSpec((None, None, self.model.encoder.config.hidden_dim), tf.float32, "states")
        last = depth == self.model.depths[-1]

        def given(**arrays: tf.Tensor) -> Answers:
            inputs = self._inputs(**arrays)
            states = self._states(inputs, before, depth)
            outputs = self.model.outputs_at(depth, states[depth], inputs)
            answers = {name: _answer(head, outputs[name], inputs) for name, head in self.model.heads.items()}
            if before:
                del states[before]  # those that it takes
            return answers | self._vectors(states, inputs) | ({} if last else {"next_states": states[depth]})

        # The inputs stand in the order of the names.
        def from_ids(token_ids, type_ids, segment_ids) -> Answers:
            return given(token_ids=token_ids, type_ids=type_ids, segment_ids=segment_ids)

        def from_states(states, segment_ids) -> Answers:
            return given(states=states, segment_ids=segment_ids)

        stage, taken = (from_states, [states_taken, IDS[-1]]) if before else (from_ids, IDS)
        function = tf.function(stage, autograph=False, input_signature=taken).get_concrete_function()
        return Stage(function, depth, [*range(before + 1 if before else 0, depth + 1)], last and self._pools)

    def _inputs(self, **arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the model reads of a stage's arrays: every row is a segment of its own, of the first of the tasks."""
        rows, length = tf.unstack(tf.shape(arrays["segment_ids"]))
        inputs = arrays | {
            "segment_ids": arrays["segment_ids"] * tf.expand_dims(tf.range(1, rows + 1), 1),
            "position_ids": arrays["segment_ids"] * tf.expand_dims(tf.range(length), 0),
            "first_token": tf.range(rows) * length,
            "task": tf.zeros((rows,), tf.int32),
        }
        if masked := [name for name, head in self.model.heads.items() if head.level == "mask"]:
            masks = tf.where(tf.reshape(arrays["token_ids"], [-1]) == self.tokenizer.mask_id)[:, 0]
            inputs |= {f"place.{name}": masks for name in masked}
        return inputs

    def _states(self, inputs: Mapping[str, tf.Tensor], before: int, depth: int) -> dict[int, tf.Tensor]:
        """Those behind the layers of the numbers from `before` to `depth`."""
        encoder = self.model.encoder
        states = inputs["states"] if before else encoder.embed(inputs)
        return dict(enumerate([states, *encoder.run_layers(states, inputs, before, depth)], start=before))

    def _vectors(self, states: Mapping[int, tf.Tensor], inputs: Mapping[str, tf.Tensor]) -> Answers:
        """States by their names, and the pooled output where it is one of the last of them."""
        found, last = {_layer_name(number): each for number, each in states.items()}, self.model.depths[-1]
        if self._pools and last in states:
            found["pooled"] = self.model.segment_vectors(states[last], inputs)
        return found

    @property
    def _pools(self) -> bool:
        """Whether there is a pooler that a head has learned with; without one its numbers mean nothing."""
        heads = self.model.heads.values()
        return self.model.pooling == "cls" and any(head.level == "text" for head in heads)

    def _passes(self) -> Iterable[tuple[int, Sequence[str]]]:
        """The task that the encoder is told in each of its passes, and the heads that answer from it."""
        if not self.model.encoder.config.reads_tasks:
            return [(0, list(self.model.heads))]
        return [(task, list(names)) for task, names in groupby(self.model.heads, self.task_of.__getitem__)]

    def _answers(self, rows: tf.RaggedTensor, second_start: tf.Tensor | None, names: Sequence[str]) -> Answers:
        """What the named heads answer to rows of tokens; `second_start` `(rows,)` says where a second text begins.

        It calls the whole graph: what nobody reads of it is not computed.
        """
        token_ids = rows.to_tensor(self.tokenizer.pad_id)
        length = tf.shape(token_ids)[1]
        segment_ids, type_ids = tf.sequence_mask(rows.row_lengths(), length, tf.int32), tf.zeros_like(token_ids)
        if second_start is not None:
            type_ids = segment_ids - tf.sequence_mask(second_start, length, tf.int32)
        answers = self.ids(token_ids, type_ids, segment_ids)
        return {name: answers[name] for name in names}


def _part(graph: Any, names: Sequence[str]) -> Callable:
    """The graph with the answers of the named heads alone."""
    return tf.function(
        lambda *texts: {name: answer for name, answer in graph(*texts).items() if name in names},
        autograph=False,
        input_signature=graph.input_signature,
    )


def _layer_name(number: int) -> str:
    return f"layer_{number}"


def _answer(head: Head, outputs: tf.Tensor, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    if head.separate:
        return outputs  # of one text; what its kind answers is of two
    if head.level != "mask":
        return head.answer(outputs, None, inputs)
    masks = inputs[f"place.{head.name}"]
    found = head.answer(outputs, tf.zeros_like(masks), inputs)[:, 1:]  # without what it says of the label
    rows, length = tf.unstack(tf.shape(inputs["token_ids"]))
    spread = tf.scatter_nd(tf.expand_dims(masks, 1), found, tf.cast([rows * length, found.shape[1]], masks.dtype))
    return tf.reshape(spread, [rows, length, found.shape[1]])


def _words_of(answers: tf.Tensor, numbers: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Answers by token `(texts, length, tags)` as `(texts, count, tags)` by word; `numbers` `(texts, length)` are those
    of the words whose first tokens stand there, else -1."""
    places = tf.where(numbers >= 0)
    words = tf.stack([places[:, 0], tf.cast(tf.gather_nd(numbers, places), tf.int64)], axis=1)
    shape = tf.stack([tf.shape(answers, tf.int64)[0], tf.cast(count, tf.int64), answers.shape[2]])
    return tf.ensure_shape(tf.scatter_nd(words, tf.gather_nd(answers, places), shape), (None, None, answers.shape[2]))
