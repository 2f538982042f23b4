"""The real configuration tree: every YAML composes, every key is explained, and mistakes are all told at once."""

import functools
import itertools
from pathlib import Path

import pytest

from bert_mtl import commands
from bert_mtl import config as schemas
from bert_mtl.compare import CompareConfig
from conf import entry
from conf.entry import CONF_DIR, ConfigError, Schema, explained_keys

NEEDED = {
    "evaluate": ["run=r"],
    "report": ["run=r"],
    "compare": ["runs=[a,b]"],
    "predict": ["run=r", "text=t"],
    "embed": ["run=r", "input=i.txt", "output=o.npy"],
    "export": ["run=r", "bundle=b"],
    "vocab": ["output=v"],
    "drift": ["bundle=b", "samples=s"],
}
COMMANDS = {
    "train": schemas.TrainConfig,
    "prepare": schemas.PrepareConfig,
    "evaluate": commands.EvaluateConfig,
    "report": commands.ReportConfig,
    "compare": CompareConfig,
    "predict": commands.PredictConfig,
    "embed": commands.EmbedConfig,
    "export": commands.ExportConfig,
    "dashboard": commands.DashboardConfig,
    "vocab": schemas.VocabConfig,
    "drift": commands.DriftConfig,
}
TEXTS = CONF_DIR / "texts"  # the tree of the commands that read a file of texts
GROUP_FILES = sorted(path for path in CONF_DIR.glob("*/*.yaml") if path.parent != TEXTS)


def compose(command: str, *overrides: str):
    folder = TEXTS if command in ("predict", "embed") else CONF_DIR
    return entry.compose(command, overrides, COMMANDS[command], config_dir=folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command):
    assert compose(command, *NEEDED.get(command, []))


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_choice_composes(path: Path):
    option = f"{path.parent.name}={path.stem}"
    needed = {
        "tokenizer=sentencepiece": ["tokenizer.vocab=v.model"],
        "mixing=explicit": ["mixing.rates={imdb: 1}"],
        "task=imdb_unsup": ["task=[imdb,imdb_unsup]", "data=full", "distill.teachers=[runs/imdb]"],
    }
    data = [] if path.parent.name != "task" or "\n  sample:" in path.read_text() else ["data=full"]
    options = needed.get(option, data)
    own = [] if any(other.startswith("task=") for other in options) else [option]
    assert entry.compose("train", [*own, *options], schemas.TrainConfig).tasks


def test_every_key_is_explained():
    assert [(str(key.file.relative_to(CONF_DIR)), key.key) for key in explained_keys(CONF_DIR) if not key.comment] == []


def test_all_mistakes_are_told_at_once_with_options_and_the_closest_match():
    overrides = [
        "model=minlm",
        "train.epochs=two",
        "optimizer.learning_rat=1",
        "strategy=mirrored",
        "weighting=dwa",
    ]
    with pytest.raises(ConfigError) as caught:
        entry.compose("train", overrides, schemas.TrainConfig)
    text = str(caught.value)
    assert text.startswith("4 problems in the configuration:")
    for part in (
        "Did you mean minilm?",
        "train.epochs must",
        "Did you mean",
        "weighting must be static on several devices",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=x"], "data.path must be null with data=sample"),
        (["data=full", "data.workers=0"], "data.workers must be -1 or at least 1; got 0"),
        (["data.dev_fraction=0.6", "data.test_fraction=0.5"], "must leave a share for train"),
        (["task=ag_news"], "data must be a source that task ag_news has; got sample. Options: full."),
        (["model.weights=null"], "model.size must be given without model.weights"),
        (
            ["model=tiny", "model.size.num_heads=3"],
            r"model.size.hidden_dim must be a multiple of model.size.num_heads \(3\); got 32",
        ),
        (["tokenizer.max_length=16"], r"input.pad_to must be at most tokenizer.max_length \(16\)"),
        (["input.row_length=64"], r"input.row_length must be null or at least tokenizer.max_length \(\d+\); got 64"),
        (["train.patience=2", "train.select=last"], "train.patience must be null with train.select=last"),
        (["strategy=mirrored", "weighting=dwa"], "weighting must be static on several devices; got dwa"),
        (
            ["strategy=one_device", "strategy.devices=[GPU:0,GPU:1]"],
            "strategy.devices must name one device with strategy=one_device",
        ),
        (["strategy=multi_worker", "weighting=dwa"], "weighting must be static on several devices; got dwa"),
        (
            ["strategy=multi_worker", "strategy.devices=[GPU:0]"],
            "strategy.devices must be null with strategy=multi_worker, which takes all GPUs it sees",
        ),
        (
            ["strategy=multi_worker", "data.rebuild=true"],
            "data.rebuild must be false with strategy=multi_worker, .*; got true",
        ),
        (["model.trainable=last:0"], "model.trainable must be all, heads or last:<n>"),
        (["tasks.imdb.trainable=none"], "tasks.imdb.trainable must be all, heads or last:<n>"),
        (["run.resume=nowhere"], "run.resume must be a folder that bert_mtl.train wrote; got nowhere"),
        (["train.select=test"], "Options: dev, last"),
    ],
)
def test_impossible_combinations_are_refused_by_key_rule_and_value(overrides, message):
    with pytest.raises(ConfigError, match=message):
        entry.compose("train", overrides, schemas.TrainConfig)


@functools.cache
def composed() -> dict:
    return entry.compose("train", [], schemas.TrainConfig).model_dump(mode="json")


def tasks_of(heads: dict[str, dict]) -> schemas.TrainConfig:
    """The configuration with these heads by task instead of its own tasks."""
    source = {"format": "jsonl", "path": "x"}
    tasks = {task: {"heads": own, "sources": {"sample": source}} for task, own in heads.items()}
    return entry.validate(composed() | {"tasks": tasks}, schemas.TrainConfig)


MOOD = {"kind": "classification", "labels": ["neg", "pos"]}
SCORE = {"kind": "regression"}
MASKED = {"kind": "mlm"}


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({}, "must have at least 1 "),
        ({"x": 3}, ".x must be a section of keys; got 3"),
        ({"x": {}}, ".x.kind must be given; got nothing. Options: classification, "),
        ({"x": MOOD | {"kind": "clasification"}}, r".x.kind must .*; got clasification\. .* Did you mean classificati"),
        ({"x": {"kind": "classification"}}, ".x.labels must be given; got nothing"),
        ({"x": MOOD | {"labels": []}}, ".x.labels must have at least 2 entries"),
        ({"x": MOOD | {"labels": ["a", "a"]}}, ".x.labels must hold each label once"),
        ({"x": MOOD | {"class_weights": [1.0]}}, ".x.class_weights must hold one weight for each of the 2 labels"),
        ({"x": MOOD | {"weight": 0}}, ".x.weight must be greater than 0; got 0"),
        ({"x": MOOD | {"label_smoothin": 0.1}}, "Did you mean label_smoothing"),
        ({"text": MASKED}, "must have names of letters, .* and not text, text_b, tokens; got text"),
        ({"a/b": MASKED}, "must have names of letters, .*; got a/b"),
        ({"x": MASKED, "y": SCORE}, ".x must be the only head of its task, as it hides words; got mlm"),
        ({"y": SCORE, "x": {"kind": "similarity"}}, ".x must be the only head of its task, of texts apart; got simil"),
    ],
)
def test_a_head_that_cannot_be_is_refused(heads, message):
    with pytest.raises(ConfigError, match=f"tasks.a.heads{'' if message.startswith('.') else ' ?.*'}{message}"):
        tasks_of({"a": heads})


def test_a_column_is_of_a_field_or_a_head():
    with pytest.raises(ConfigError, match="columns must name known fields; got imbd. .* Did you mean imdb"):
        entry.compose("train", ["+tasks.imdb.sources.sample.columns.imbd=label"], schemas.TrainConfig)


@pytest.mark.parametrize(
    "heads", [{"a": {"b_c": MASKED}, "a_b": {"c": MASKED}}, {"a": {"b": SCORE}, "a_b": {"a_b": MOOD}}]
)
def test_full_names_of_heads_do_not_meet(heads):
    with pytest.raises(
        ConfigError, match=r"^tasks.a_b.heads.\w+ must have another full name \(<task>_<head>\) than all "
    ):
        tasks_of(heads)
    assert list(tasks_of({"a": {"mood": MOOD}, "b": {"mood": MOOD}}).tasks) == ["a", "b"]


@pytest.mark.parametrize(
    ("head", "rule"),
    [
        (SCORE | {"share_head": "cc"}, "name another head of this run; got cc. Options: b_mood, c, d. Did you mean c"),
        (SCORE | {"share_head": "a"}, "name another head of this run; got a. Options: b_mood, c, d"),
        (SCORE | {"share_head": "b_mood"}, "name a head with the same kind; got b_mood. Options: null"),
        (MOOD | {"labels": ["pos", "neg"], "share_head": "b_mood"}, "name a head with the same kind and labels"),
        (MOOD | {"share_head": "d"}, "name a head with the same kind and labels; got d. Options: b_mood"),
        (MOOD | {"share_head": "c"}, "name a head that has a layer of its own; got c"),
        ({"kind": "vector", "dim": 3, "share_head": "d"}, "name a head with the same kind and dim; got d"),
    ],
)
def test_a_layer_is_shared_only_by_heads_that_can(head, rule):
    others = {
        "b": {"mood": MOOD},
        "c": {"c": MOOD | {"share_head": "b_mood"}},
        "d": {"d": {"kind": "vector", "dim": 4}},
    }
    assert list(tasks_of(others).tasks) == ["b", "c", "d"]
    with pytest.raises(ConfigError, match=f"^tasks.a.heads.a.share_head must {rule}"):
        tasks_of({"a": {"a": head}} | others)


def test_masked_words_are_shared_only_by_tasks_that_change_as_much():
    mlm = "{{heads: {{{name}: {{kind: mlm{share}}}}}, sources: {{sample: {{format: text, path: x}}}}{more}}}"
    first = "+tasks.a=" + mlm.format(name="a", share="", more="")
    for trainable in ("heads", "last:1"):
        second = "+tasks.b=" + mlm.format(name="b", share=", share_head: a", more=f", trainable: '{trainable}'")
        rule = rf"name a head of a task with the same trainable \({trainable}\); got a"
        with pytest.raises(ConfigError, match=f"^tasks.b.heads.b.share_head must {rule}"):
            entry.compose("train", ["~tasks.imdb", first, second], schemas.TrainConfig)


@pytest.mark.parametrize(("task", "head", "kind"), [("snips", "slots", "tagging"), ("imdb_mlm", "imdb_mlm", "mlm")])
def test_heads_of_words_and_of_masks_read_no_pairs(task, head, kind):
    rule = f"have no text_b beside {head}, of kind {kind}, which reads single texts; got b"
    with pytest.raises(ConfigError, match=f"tasks.{task}.sources.full.columns must {rule}"):
        overrides = [f"task=[{task}]", "data=full", f"++tasks.{task}.sources.full.columns.text_b=b"]
        entry.compose("train", overrides, schemas.TrainConfig)


def test_a_label_that_yaml_takes_for_true_is_told_of_quotes():
    overrides = ["task=[imdb]", "tasks.imdb.heads.imdb.labels=[true,false]"]
    with pytest.raises(ConfigError, match=r"labels.0 must be text \(YAML reads yes, no, on and off without quotes as "):
        entry.compose("train", overrides, schemas.TrainConfig)


@pytest.mark.parametrize("rate", ["0", "-1"])
def test_a_rate_is_above_0(rate):
    overrides = ["task=[imdb,snips]", "mixing=explicit", f"mixing.rates={{imdb: 1, snips: {rate}}}"]
    with pytest.raises(ConfigError, match="^mixing.rates.snips must be above 0 .* .to leave a task out"):
        entry.compose("train", overrides, schemas.TrainConfig)


def test_a_run_and_a_text_or_a_file_are_needed_to_predict():
    with pytest.raises(ConfigError, match="run must be given"):
        compose("predict", "text=hello")
    for overrides in ([], ["text=a", "input=b", "output=c"]):
        with pytest.raises(ConfigError, match="text must be given, or input, and not both"):
            compose("predict", "run=r", *overrides)


def test_the_default_run_folder_is_named_after_tasks_and_time():
    folder = entry.compose("train", [], schemas.TrainConfig).run.dir
    assert folder.startswith("runs/imdb-20") and len(folder) == len("runs/imdb-20261123-061500")


def test_defaults_of_yaml_and_schema_do_not_overlap():
    """A default in both places could differ: sections of the tree take theirs from YAML alone."""
    sections = [field.annotation for field in schemas.TrainConfig.model_fields.values()]
    sections = [section for section in sections if isinstance(section, type) and issubclass(section, Schema)]
    assert len(sections) >= 11
    fields = itertools.chain.from_iterable(section.model_fields.values() for section in sections)
    assert all(field.is_required() for field in fields)
