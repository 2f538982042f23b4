"""An exported bundle answers as its run does: each of its signatures, for every kind of head."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.config import TrainConfig
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.export import write_bundle
from bert_mtl.multitask import make_model
# PRED
from bert_mtl.runs import Facts, Run, open_run, save_variables, start_run, weights_of
from bert_mtl.tasks import make_tasks
from bert_mtl.tokenization import Tokenizer, WordPieceTokenizer
from conf import entry

SOURCE = "sources: {sample: {format: jsonl, path: '{part}.jsonl'}}"
TASKS = {
    "stars": "{stars: {kind: regression}, tones: {kind: multilabel, labels: [dry, wry, shy]}}",
    "names": "{spans: {kind: tagging, labels: [person, place], crf: true}, polite: {kind: classification, labels: [n, y]}}",
    "teacher": "{teacher: {kind: vector, dim: 5}}",
    "words": "{words: {kind: mlm}}",
    "follows": "{follows: {kind: classification, labels: [no, maybe, yes]}}",
    "alike": "{alike: {kind: similarity}}",
}
PAIRS = ["follows", "alike"]


def untrained_run(folder: Path, vocab_file: Path, tasks: list[str], *options: str, tokenizer: Tokenizer | None = None) -> Run:
    """A run as a training leaves it, with random weights."""
    adds = [f"+tasks.{task}={{heads: {TASKS[task]}, {SOURCE}}}" for task in tasks]
    names = ["model=tiny", "model.size.hidden_dim=16", "model.size.intermediate_dim=32"]
    config = entry.compose("train", [*names, f"tokenizer.vocab={vocab_file}", *adds, *options, "~tasks.imdb"], TrainConfig)
    tokenizer = tokenizer or WordPieceTokenizer(vocab_file, max_length=config.tokenizer.max_length)
    model, known = config.model, make_tasks(config.tasks)
    sizes = EncoderConfig(
        tokenizer.vocab_size, 16, 2, 2, 32, max_positions=64, tasks=len(tasks), adapters=model.adapters, adapter_dim=4,
        pooler=model.pooling == "cls", dropout=0.0, task_embedding=model.task_embedding,
    )
    made = make_model(model, BertEncoder(sizes), known, seed=0)
    dice = np.random.default_rng(1)
    for variable in made.weights:  # BERT's initial weights would answer every text much the same
        variable.assign(dice.normal(scale=0.5, size=variable.shape))
    run = start_run(folder, config, tokenizer, Facts(sizes, [task for task in tasks if task in PAIRS], {}, {}))
    save_variables(run.weights, weights_of(made))
    (folder / "metrics.json").write_text(json.dumps({"dev": {}, "test": {}}))
    return open_run(folder)


def test_smoke(tmp_path, vocab_file):
    run = untrained_run(tmp_path / "run", vocab_file, list(TASKS), "tokenizer.max_length=16", "input.pad_to=16")
    write_bundle(run, tmp_path / "bundle", "x")
    loaded = tf.saved_model.load(str(tmp_path / "bundle/saved_model"))
    print(list(loaded.signatures))
    print(json.dumps(json.loads((tmp_path / "bundle/manifest.json").read_text())["heads"])[:3000])
    if 0:     print(loaded.signatures["text"](texts=tf.constant(["a good film one two", "anna"])))
    if 0:     print(loaded.signatures["pair"](texts=tf.constant(["a good film one two", "anna"]), texts_b=tf.constant(["a good", "b"])))
