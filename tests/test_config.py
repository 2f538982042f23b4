"""The real configuration tree: every YAML composes, every key is explained, and mistakes are all told at once."""

import itertools
from pathlib import Path

import pytest

from bert_mtl import config as schemas
from conf import entry
from conf.entry import CONF_DIR, ConfigError, explained_keys

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
    option = f"{'+' if path.parent.name == 'experiment' else ''}{path.parent.name}={path.stem}"
    vocab = ["tokenizer.vocab=v.model"] if path.stem == "sentencepiece" else []
    assert entry.compose("train", [option.lstrip("+"), *vocab], schemas.TrainConfig).tasks


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
        "strategy.xla must not be true with strategy=mirrored",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=x"], "data.path must be null with data=sample"),
        (["data=full", "data.workers=0"], "data.workers must be -1 or at least 1; got 0"),
        (["data.dev_fraction=0.6", "data.test_fraction=0.5"], "must leave a share for train"),
        (["model.weights=null"], "model.size must be given without model.weights"),
        (
            ["model=tiny", "model.size.num_heads=3"],
            r"model.size.hidden_dim must be a multiple of model.size.num_heads \(3\); got 32",
        ),
        (["tokenizer.max_length=16"], r"input.pad_to must be at most tokenizer.max_length \(16\)"),
        (["train.patience=2", "train.select=last"], "train.patience must be null with train.select=last"),
        (["strategy=mirrored", "optimizer.accumulate=2"], "optimizer.accumulate must be 1 with strategy=mirrored"),
        (["tasks.imdb.heads.imdb.labels=[a,a]"], "tasks.imdb.heads.imdb.labels must hold each label once"),
        (["tasks.imdb.heads.imdb.class_weights=[1.0]"], "must hold one weight for each of the 2 labels"),
        (["model.trainable=last:0"], "model.trainable must be all, heads or last:<n>"),
        (
            ["+tasks.imdb.heads.text.kind=classification", "+tasks.imdb.heads.text.labels=[a,b]"],
            "and not text or text_b",
        ),
        (["run.resume=nowhere"], "run.resume must be a folder that bert_mtl.train wrote; got nowhere"),
        (["train.select=test"], "Options: dev, last"),
    ],
)
def test_impossible_combinations_are_refused_by_key_rule_and_value(overrides, message):
    with pytest.raises(ConfigError, match=message):
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
    sections = (
        schemas.DataConfig,
        schemas.ModelConfig,
        schemas.TokenizerConfig,
        schemas.InputConfig,
        schemas.TrainSettings,
    )
    fields = itertools.chain.from_iterable(section.model_fields.values() for section in sections)
    assert all(field.is_required() for field in fields)
