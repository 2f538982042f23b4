"""The graphs of a bundle: texts or token ids in, what every head answers out."""

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

import tensorflow as tf

from bert_mtl.kinds import Head
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.tasks import Task
from bert_mtl.tokenization import Tokenizer

ID_INPUTS = ("token_ids", "type_ids", "segment_ids")
TEXTS, TEXTS_B = (tf.TensorSpec((None,), tf.string, name) for name in ("texts", "texts_b"))
IDS = [tf.TensorSpec((None, None), tf.int32, name) for name in ID_INPUTS]


class Served(tf.Module):
    """A model as graphs, whose outputs are answers (`Head.answer`) by the heads' full names.

    `signatures` names the graphs; in each, all heads answer from one pass of the encoder, unless that reads the tasks:
    then it is one pass a task.
        ids: token_ids, type_ids, segment_ids `(rows, length)` int32 (segment_ids: 1 on tokens, 0 on padding), all heads
        text: texts `(texts,)`, the heads that can be asked about a single text; this is serving_default
        pair: texts and texts_b `(texts,)`, the heads that can be asked about two
        task_<name>: as text or pair, the heads of one task

    Heads of texts answer `(rows, …)`: labels' probabilities `(rows, labels)`, values `(rows,)`, vectors `(rows, dim)`.
    Vectors of the two texts of a pair that are read apart are `(texts, 2, dim)` in `pair`.
    Heads of tokens answer `(rows, length, tags)` in ids; in texts `(texts, words, tags)`, words being what white space
    parts, with zeros for words that are not there or that truncation left out.
    Heads of masked places answer in ids alone: `(rows, length, n)`, zeros but at tokens that are [MASK].

    Args:
        pairs: names of the tasks that read pairs.
    """

    def __init__(self, model: MultiTaskModel, tokenizer: Tokenizer, tasks: Mapping[str, Task], pairs: Iterable[str]):
        super().__init__(name="served")
        self.model = model
        self.tokenizer = tokenizer
        self.task_numbers = {head.name: task.number for task in tasks.values() for head in task.heads.values()}
        of_pairs = {name for pair in pairs for name in _spoken(tasks[pair])}
        spoken = {task: _spoken(tasks[task]) for task in tasks}
        every = [name for names in spoken.values() for name in names]
        single = [name for name in every if name not in of_pairs or model.heads[name].separate]
        self.signatures = {"ids": self._of_ids()}
        self.signatures |= {"text": self._of_texts(single)} if single else {}
        self.signatures |= {"pair": self._of_pairs([name for name in every if name in of_pairs])} if of_pairs else {}
        for task, names in spoken.items():
            if names:
                self.signatures[f"task_{task}"] = (self._of_pairs if task in pairs else self._of_texts)(names)
        default = next(name for name in ("text", "pair", "ids") if name in self.signatures)
        self.signatures["serving_default"] = self.signatures[default]

    def _of_ids(self) -> Callable:
        return tf.function(
            lambda token_ids, type_ids, segment_ids: self.answers(
                token_ids, type_ids, segment_ids, list(self.model.heads)
            ),
            input_signature=IDS,
        )

    def _of_texts(self, names: list[str]) -> Callable:
        return tf.function(lambda texts: self.text_answers(texts, names), input_signature=[TEXTS])

    def _of_pairs(self, names: list[str]) -> Callable:
        def pair(texts, texts_b):
            return self.pair_answers(texts, texts_b, names)

        return tf.function(pair, input_signature=[TEXTS, TEXTS_B])

    def answers(self, token_ids, type_ids, segment_ids, names: list[str]) -> dict[str, tf.Tensor]:
        """Answers of the named heads to rows `(rows, length)` of one text or pair each."""
        rows, length = tf.unstack(tf.shape(token_ids))
        inputs = {
            "token_ids": token_ids,
            "type_ids": type_ids,
            "segment_ids": segment_ids * tf.expand_dims(tf.range(1, rows + 1), 1),
            "position_ids": segment_ids * tf.expand_dims(tf.range(length), 0),
            "first_token": tf.range(rows) * length,
        }
        masks = tf.where(tf.reshape(token_ids, [-1]) == self.tokenizer.mask_id)  # `(masks, 1)`
        inputs |= {f"place.{name}": masks[:, 0] for name in names if self.model.heads[name].level == "mask"}
        outputs = {}
        for task, group in self._passes(names):
            outputs |= self.model(inputs | {"task": tf.fill([rows], task)}, training=False, heads=group)
        return {name: _answer(self.model.heads[name], outputs[name], inputs, masks) for name in names}

    def _passes(self, names: list[str]) -> Iterable[tuple[int, list[str]]]:
        """The heads of each pass of the encoder, and the task it is told."""
        if not self.model.encoder.config.reads_tasks:
            return [(0, names)]
        return [(task, list(group)) for task, group in groupby(names, self.task_numbers.__getitem__)]

    def text_answers(self, texts, names: list[str]) -> dict[str, tf.Tensor]:
        """Answers of the named heads to texts."""
        by_word = [name for name in names if self.model.heads[name].level == "token"]
        if not by_word:
            return self._row_answers(self.tokenizer.encode(texts).token_ids, None, names)
        words = tf.strings.split(texts)
        encoded, numbers = self.tokenizer.encode_words(tf.strings.reduce_join(words, axis=-1, separator=" "))
        answers = self._row_answers(encoded.token_ids, None, names)
        count = tf.reduce_max(words.row_lengths())
        return answers | {name: _words_of(answers[name], numbers.to_tensor(-1), count) for name in by_word}

    def pair_answers(self, texts, texts_b, names: list[str]) -> dict[str, tf.Tensor]:
        """Answers of the named heads to pairs."""
        apart = [name for name in names if self.model.heads[name].separate]
        joint, answers = [name for name in names if name not in apart], {}
        if joint:
            encoded = self.tokenizer.encode(texts, texts_b)
            answers |= self._row_answers(encoded.token_ids, encoded.second_start, joint)
        if apart:
            token_ids, second_start, _ = self.tokenizer.encode(texts, texts_b, separate=True)
            is_first = tf.ragged.range(token_ids.row_lengths(), row_splits_dtype=token_ids.row_splits.dtype)
            is_first = tf.cast(is_first, tf.int32) < tf.expand_dims(second_start, 1)
            rows = tf.concat([tf.ragged.boolean_mask(token_ids, mask) for mask in (is_first, ~is_first)], axis=0)
            found = self._row_answers(rows, None, apart)
            answers |= {name: tf.stack(tf.split(vectors, 2), axis=1) for name, vectors in found.items()}
        return answers

    def _row_answers(self, rows: tf.RaggedTensor, second_start, names: list[str]) -> dict[str, tf.Tensor]:
        """Answers to rows of tokens, where the second text of each begins at `second_start` `(rows,)`, if at all."""
        token_ids = rows.to_tensor(self.tokenizer.pad_id)
        length = tf.shape(token_ids)[1]
        segment_ids = tf.sequence_mask(rows.row_lengths(), length, tf.int32)
        type_ids = tf.zeros_like(token_ids)
        if second_start is not None:
            type_ids = segment_ids - tf.sequence_mask(second_start, length, tf.int32)
        return self.answers(token_ids, type_ids, segment_ids, names)


def _spoken(task: Task) -> list[str]:
    """The task's heads that answer for texts."""
    return [head.name for head in task.heads.values() if head.level != "mask"]


def _answer(head: Head, outputs: tf.Tensor, inputs: Mapping[str, tf.Tensor], masks: tf.Tensor) -> tf.Tensor:
    if head.separate:
        return outputs  # of one text; what its kind answers is of two
    if head.level != "mask":
        return head.answer(outputs, None, inputs)
    found = head.answer(outputs, tf.zeros_like(masks[:, 0]), inputs)[:, 1:]  # without what it says of the label
    rows, length = tf.unstack(tf.shape(inputs["token_ids"]))
    spread = tf.scatter_nd(masks, found, tf.cast([rows * length, found.shape[1]], masks.dtype))
    return tf.reshape(spread, [rows, length, found.shape[1]])


def _words_of(answers: tf.Tensor, numbers: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Answers by token `(texts, length, tags)` as `(texts, count, tags)` by word; `numbers` `(texts, length)` are those
    of the words whose first tokens stand there, else -1."""
    places = tf.where(numbers >= 0)
    words = tf.stack([places[:, 0], tf.cast(tf.gather_nd(numbers, places), tf.int64)], axis=1)
    shape = tf.stack([tf.shape(answers, tf.int64)[0], tf.cast(count, tf.int64), answers.shape[2]])
    return tf.ensure_shape(tf.scatter_nd(words, tf.gather_nd(answers, places), shape), (None, None, answers.shape[2]))
