"""The real configuration tree: every YAML composes, every key is explained, and mistakes are all told at once."""

import itertools
from pathlib import Path

import pytest

from bert_mtl import config as schemas
from conf import entry
from conf.entry import CONF_DIR, ConfigError, Schema, explained_keys

NEEDED = {
    "evaluate": ["run=r"],
    "predict": ["run=r", "text=t"],
    "embed": ["run=r", "input=i.txt", "output=o.npy"],
    "export": ["run=r", "bundle=b"],
    "vocab": ["output=v"],
}
COMMANDS = {
    "train": schemas.TrainConfig,
    "prepare": schemas.PrepareConfig,
    "evaluate": schemas.EvaluateConfig,
    "predict": schemas.PredictConfig,
    "embed": schemas.EmbedConfig,
    "export": schemas.ExportConfig,
    "vocab": schemas.VocabConfig,
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
    }
    data = [] if path.parent.name != "task" or "\n  sample:" in path.read_text() else ["data=full"]
    assert entry.compose("train", [option, *needed.get(option, data)], schemas.TrainConfig).tasks


def test_every_key_is_explained():
    assert [(str(key.file.relative_to(CONF_DIR)), key.key) for key in explained_keys(CONF_DIR) if not key.comment] == []


def test_all_mistakes_are_told_at_once_with_options_and_the_closest_match():
    overrides = [
        "model=minlm",
        "train.epochs=two",
        "optimizer.learning_rat=1",
        "strategy=mirrored",
        "strategy.xla=true",
    ]
    with pytest.raises(ConfigError) as caught:
        entry.compose("train", overrides, schemas.TrainConfig)
    text = str(caught.value)
    assert text.startswith("4 problems in the configuration:")
    for part in (
        "Did you mean minilm?",
        "train.epochs must",
        "Did you mean",
        "strategy.xla must not be true on several devices",
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
        (["strategy=mirrored", "optimizer.accumulate=2"], "optimizer.accumulate must be 1 on several devices"),
        (["strategy=mirrored", "weighting=dwa"], "weighting must be static on several devices; got dwa"),
        (
            ["strategy=one_device", "strategy.devices=[GPU:0,GPU:1]"],
            "strategy.devices must name one device with strategy=one_device",
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


def task(name: str, heads: str) -> str:
    return f"+tasks.{name}={{heads: {{{heads}}}, sources: {{sample: {{format: jsonl, path: x}}}}}}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["~tasks.imdb.heads.imdb"], "tasks.imdb.heads must have at least 1 "),
        (["tasks.imdb.heads.imdb=3"], "tasks.imdb.heads.imdb must be a section of keys; got 3"),
        (
            ["tasks.imdb.heads.imdb.kind=clasification"],
            r"kind must be .*; got clasification\. .* Did you mean classific",
        ),
        (["~tasks.imdb.heads.imdb.labels"], "tasks.imdb.heads.imdb.labels must be given; got nothing"),
        (["tasks.imdb.heads.imdb.labels=[]"], "tasks.imdb.heads.imdb.labels must have at least 2 entries"),
        (["tasks.imdb.heads.imdb.labels=[a,a]"], "tasks.imdb.heads.imdb.labels must hold each label once"),
        (["tasks.imdb.heads.imdb.class_weights=[1.0]"], "must hold one weight for each of the 2 labels"),
        (["tasks.imdb.heads.imdb.weight=0"], "tasks.imdb.heads.imdb.weight must be greater than 0; got 0"),
        (["+tasks.imdb.heads.imdb.label_smoothin=0.1"], "Did you mean label_smoothing"),
        ([task("a", "text: {kind: mlm}")], "and not text, text_b, tokens; got text"),
        ([task("a", "x: {kind: mlm}, y: {kind: regression}")], "tasks.a.heads.x must be the only head of its task, as"),
        ([task("a", "x: {kind: similarity}, y: {kind: regression}")], "tasks.a.heads.x must be the only head of its"),
        (["+tasks.imdb.sources.sample.columns.imbd=label"], "columns must name known fields; .* Did you mean imdb"),
        (
            [task("a_b", "c: {kind: mlm}"), task("a", "b_c: {kind: mlm}")],
            r"tasks.a.heads.b_c must have another full name \(<task>_<head>\) than all other heads; got a_b_c",
        ),
        ([task("a", "b: {kind: mlm}"), task("a_b", "a_b: {kind: mlm}")], "tasks.a_b.heads.a_b must have another full"),
    ],
)
def test_a_task_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        entry.compose("train", overrides, schemas.TrainConfig)


def test_two_heads_of_one_name_are_fine_in_two_tasks():
    tasks = [task("a", "mood: {kind: regression}"), task("b", "mood: {kind: regression}")]
    assert list(entry.compose("train", tasks, schemas.TrainConfig).tasks) == ["imdb", "a", "b"]


@pytest.mark.parametrize(
    ("head", "rule"),
    [
        ("{kind: regression, share_head: imbd}", "name another head of this run; got imbd. .* Did you mean imdb"),
        ("{kind: regression, share_head: a}", "name another head of this run; got a. Options: imdb"),
        ("{kind: regression, share_head: imdb}", "name a head with the same kind; got imdb"),
        ("{kind: classification, labels: [pos, neg], share_head: imdb}", "name a head with the same kind and labels"),
        ("{kind: classification, labels: [neg, pos], share_head: c}", "name a head that has a layer of its own; got c"),
        ("{kind: vector, dim: 3, share_head: d}", "name a head with the same kind and dim; got d"),
    ],
)
def test_a_layer_is_shared_only_by_heads_that_can(head, rule):
    sharer = task("c", "c: {kind: classification, labels: [neg, pos], share_head: imdb}")
    overrides = [task("a", f"a: {head}"), sharer, task("d", "d: {kind: vector, dim: 4}")]
    with pytest.raises(ConfigError, match=f"^tasks.a.heads.a.share_head must {rule}"):
        entry.compose("train", overrides, schemas.TrainConfig)
    entry.compose("train", overrides[1:], schemas.TrainConfig)


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
