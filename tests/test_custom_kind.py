"""docs/custom_tasks.md, run as it stands: tasks from a YAML alone, and a kind of one's own by its plugin."""

import importlib
import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bert_mtl
from bert_mtl import train
from bert_mtl.config import PrepareConfig, TrainConfig
from bert_mtl.kinds import KINDS, make_head
from bert_mtl.tasks import make_example, make_tasks
from conf import entry
from conf.tree import Tree
from data_prep.sources import read

PAGE = (Path(__file__).parents[1] / "docs" / "custom_tasks.md").read_text()
FILES = dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's files, where commands are started; its kind is unknown before and after."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def forget():
    KINDS.pop("ordinal", None)
    sys.modules.pop("ordinal", None)


def config(schema: type, *overrides: str):
    return Tree("prepare", str(entry.CONF_DIR), [f"file://{Path('mine').absolute()}"]).check(overrides, schema)[0]


def run(monkeypatch, main, command: str, *overrides: str) -> None:
    program, *own = shlex.split(command)[2:]
    assert program == main.__module__
    monkeypatch.setattr(sys, "argv", [program, *own, *overrides])
    main()


@pytest.mark.parametrize(
    ("name", "texts", "labels"),
    [
        (
            "tickets",
            ["Crash It stops, then restarts.", "Invoices Where do I find them?", "Thanks You have made my day!"],
            [{"tickets": [0]}, {"tickets": [1]}, {"tickets": [2]}],
        ),
        (
            "calls",
            ["a ticket to New York", "rain in Rome again"],
            [
                {"calls_topic": [0], "calls_mood": [0.5], "calls_places": [0, 0, 0, 1, 2]},
                {"calls_topic": [1], "calls_mood": [float("nan")], "calls_places": [0, 0, 1, 0]},
            ],
        ),
        ("names", ["Ada Lovelace wrote", "in London"], [{"names": [1, 2, 0]}, {"names": [0, 3]}]),
    ],
)
def test_a_documented_task_reads_its_data(place, name, texts, labels):
    tasks = config(PrepareConfig, f"task=[{name}]", "data=full").tasks
    rows = read(tasks[name].sources["full"], "train", tasks[name])
    examples = [make_example(make_tasks(tasks)[name], row.values, row.origin) for row in rows]
    assert [example.text for example in examples] == texts
    for example, expected in zip(examples, labels, strict=True):
        assert example.labels.keys() == expected.keys()
        for head, numbers in expected.items():
            np.testing.assert_array_equal(example.labels[head], numbers)


def test_the_first_documented_task_trains_by_its_command(place, vocab_file, monkeypatch):
    header, *rows = Path("data/tickets.csv").read_text().splitlines()
    Path("data/tickets.csv").write_text("\n".join([header, *rows * 10]) + "\n")
    tiny = [f"tokenizer.vocab={vocab_file}", "tokenizer.max_length=16", "input.pad_to=16"]
    run(monkeypatch, train.main, COMMANDS[0], "model=tiny", "model.size.num_layers=1", *tiny, "run.dir=runs/tickets")
    assert json.loads(Path("runs/tickets/metrics.json").read_text())["test"].keys() == {"tickets"}
    told = json.loads(Path("runs/tickets/origin.json").read_text())["arguments"]
    assert told[0].startswith("--config-dir=") and Path(told[0].partition("=")[2], "task/tickets.yaml").exists()
    assert told[1] == "task=tickets"


def test_the_documented_kind_is_short_and_trains_and_answers_by_the_documented_commands(
    place, vocab_file, monkeypatch, capsys
):
    assert len(FILES["ordinal.py"].splitlines()) < 40
    words, fill = {"poor": "bad", "fair": "ok", "good": "great"}, random.Random(1)
    rows = [
        {"text": f"{fill.choice(['it', 'film', 'plot'])} was {words[label]}", "label": label} for label in words
    ] * 20
    Path("data/stars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny = [
        f"tokenizer.vocab={vocab_file}",
        "tokenizer.max_length=16",
        "input.pad_to=16",
        "optimizer.learning_rate=1e-2",
    ]
    run(monkeypatch, train.main, COMMANDS[1], "model=tiny", "model.size.num_layers=1", *tiny, "train.epochs=3")
    figures = json.loads(Path("runs/stars/metrics.json").read_text())
    assert figures["test"]["stars"] == {"closeness": 1, "spearman": pytest.approx(1)}

    forget()
    capsys.readouterr()
    predict = importlib.import_module("bert_mtl.predict")
    run(monkeypatch, predict.main, COMMANDS[2])
    answer = json.loads(capsys.readouterr().out)["stars"]
    assert answer["label"] == "good" and 1 < answer["place"] < 2


def test_the_documented_loss_is_that_of_each_step_between_labels(place):
    importlib.import_module("ordinal")
    head = make_head("stars", KINDS["ordinal"].Settings(kind="ordinal", labels=["poor", "fair", "good"]))
    # From logits 0 and ln 3: above poor with probability 1/2, above fair with 3/4.
    losses = head.losses(np.log(np.array([[1, 3]] * 3, np.float32)), np.array([0, 1, 2], np.int32))
    np.testing.assert_allclose(losses, [np.log(8), np.log(8), np.log(8 / 3)], rtol=1e-6)
    answers = np.array([[0.1, 0.1], [0.9, 0.2], [0.9, 0.8]])
    assert head.metrics(answers, np.array([0, 1, 1])) == {
        "closeness": pytest.approx(5 / 6),
        "spearman": pytest.approx(0.75**0.5),
    }
    assert head.decode(answers[1:2]) == [{"label": "fair", "place": pytest.approx(1.1)}]


def test_without_its_plugin_a_kind_is_unknown(place):
    with pytest.raises(
        entry.ConfigError, match=r"tasks\.stars\.heads\.stars\.kind must be one of the options; got ordinal"
    ):
        config(PrepareConfig, "task=[stars]", "data=full")
    assert config(PrepareConfig, "task=[stars]", "data=full", "plugins=[ordinal]").plugins == ["ordinal"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "ModuleNotFoundError: No module named 'ordinl'"), ("1 / 0", "ZeroDivisionError: division by zero")],
)
def test_a_plugin_that_cannot_be_imported_is_named_beside_the_other_mistakes(place, text, reason):
    if text:
        Path("ordinl.py").write_text(text)
    with pytest.raises(entry.ConfigError) as error:
        config(PrepareConfig, "task=[tickets]", "data=full", "plugins=[ordinl]", "data.seed=x")
    assert str(error.value).splitlines()[1:] == [
        f"plugins.0 must name a Python module that can be imported ({reason}); got ordinl.",
        "data.seed must be a whole number; got x.",
    ]


def test_the_package_offers_what_kinds_are_made_of_and_imports_fast():
    assert bert_mtl.register_kind("x").__qualname__.startswith("register_kind")
    assert KINDS["vector"].__mro__[1] is bert_mtl.Head and issubclass(TrainConfig, PrepareConfig)
    code = (
        "import sys, bert_mtl; assert not {'keras', 'tensorflow', 'numpy'} & sys.modules.keys(), 'slow'; bert_mtl.Heads"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == "AttributeError: module 'bert_mtl' has no attribute 'Heads'"
