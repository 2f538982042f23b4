"""`problem=…`, the other way to say which tasks and heads are learned."""

import json

import pytest

from bert_mtl.commands import PredictConfig
from bert_mtl.config import PrepareConfig, TrainConfig
from conf import entry
from conf.problem import full_name, unchained
from data_prep.sources import read

TASKS = {
    "imdb": {"heads": {"imdb": {}}},
    "snips": {
        "heads": {"intent": {}, "slots": {}},
        "sources": {
            "sample": {"columns": {"tokens": "words", "intent": "label", "slots": "tags"}},
            "full": {"labels": {"slots": {"LOC": "city"}}},
        },
    },
}
HEADS = "name heads of tasks; got {}. Options: imdb, snips_intent, snips_slots. Did you mean snips_slots?"
TWICE = "name each head once, and join those of one task by &; got {}."
EMPTY = "have a name on both sides of | and &; got {}."
NO_SLOTS = [
    "~tasks.snips.heads.slots",
    "~tasks.snips.sources.sample.columns.slots",
    "~tasks.snips.sources.full.labels.slots",
]


def test_a_head_has_the_name_of_its_task_or_begins_with_it():
    assert (full_name("imdb", "imdb"), full_name("snips", "slots")) == ("imdb", "snips_slots")


@pytest.mark.parametrize(
    ("problem", "meaning"),
    [
        ("imdb", ["task=[imdb]"]),
        ("imdb|snips_intent&snips_slots", ["task=[imdb,snips]"]),
        ("snips_slots & snips_intent | imdb", ["task=[snips,imdb]"]),
        ("'imdb|snips_intent'", ["task=[imdb,snips]", *NO_SLOTS]),
        ("snips_slots", ["task=[snips]", "~tasks.snips.heads.intent", "~tasks.snips.sources.sample.columns.intent"]),
    ],
)
def test_a_chain_is_a_choice_of_tasks_without_the_heads_it_does_not_name(problem, meaning):
    assert unchained(["seed=2", f"problem={problem}", "model=tiny"], TASKS) == (["seed=2", *meaning, "model=tiny"], [])


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("imdb|snips_slot", HEADS.format("snips_slot")),
        ("snips", HEADS.format("snips")),
        ("imdb&snips_intent", "join heads of different tasks by |, not &; got imdb&snips_intent."),
        ("imdb|", EMPTY.format("imdb|")),
        ("snips_intent&&snips_slots", EMPTY.format("snips_intent&&snips_slots")),
        ("", EMPTY.format("''")),
        ("snips_intent|snips_slots", TWICE.format("snips_intent|snips_slots")),
        ("imdb&imdb", TWICE.format("imdb&imdb")),
    ],
)
def test_a_chain_that_cannot_be_is_left_out_and_told(problem, said):
    overrides, problems = unchained([f"problem={problem}", "model=tiny"], TASKS)
    assert overrides == ["model=tiny"] and [str(found) for found in problems] == [f"problem must {said}"]


@pytest.mark.parametrize("other", ["task=[imdb]", "+task=imdb", "problem=imdb"])
def test_tasks_are_chosen_in_one_way(other):
    _, problems = unchained(["problem=imdb", other], TASKS)
    assert str(problems[0]) == f"problem must be given once, and without task; got problem=imdb {other}."


def test_the_mistakes_of_a_chain_are_told_beside_others():
    with pytest.raises(entry.ConfigError) as error:
        entry.compose("train", ["problem=imdb|trek", "train.epochs=0"], TrainConfig)
    first, second = error.value.problems
    assert (first.key, first.value, second.key) == ("problem", "trek", "train.epochs")
    assert {"imdb", "snips_intent", "snips_slots", "trec"} <= set(first.options) and "snips" not in first.options


def test_a_head_that_is_left_out_leaves_the_texts_and_labels_of_the_others():
    config = entry.compose("prepare", ["problem=imdb|snips_intent"], PrepareConfig)
    assert {name: list(task.heads) for name, task in config.tasks.items()} == {"imdb": ["imdb"], "snips": ["intent"]}
    row = next(read(config.tasks["snips"].sources["sample"], "train", config.tasks["snips"]))
    assert row.values["intent"] == "GetWeather" and row.values["text"].startswith("what is the weather in")


def test_commands_without_tasks_have_no_problem():
    told = "problem must be a key of the configuration; got problem"
    with pytest.raises(entry.ConfigError, match=told):
        entry.compose(
            "predict", ["problem=imdb", "run=a", "text=b"], PredictConfig, config_dir=entry.CONF_DIR / "texts"
        )


# On the command line.


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs a command line in an empty folder beside a task of one's own; returns the configurations of its jobs."""
    task = {"heads": {head: {"kind": "classification", "labels": ["a", "b"]} for head in ("tone", "topic")}}
    task["sources"] = {"sample": {"format": "jsonl", "path": "mail.jsonl"}}
    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "mine" / "task" / "mail.yaml").write_text(f"# @package tasks.mail\n{json.dumps(task)}\n")
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> list[PrepareConfig]:
        seen: list[PrepareConfig] = []
        entry.main("prepare", PrepareConfig, seen.append, argv=["--config-dir", "mine", *argv])
        return seen

    return run


def test_a_command_says_what_a_chain_became_and_knows_tasks_of_one_s_own(start, capsys):
    (config,) = start("problem=trec|mail_topic")
    assert {name: list(task.heads) for name, task in config.tasks.items()} == {"trec": ["trec"], "mail": ["topic"]}
    assert capsys.readouterr().err == "problem=trec|mail_topic became task=[trec,mail] ~tasks.mail.heads.tone\n"


def test_a_sweep_keeps_its_problem(start):
    configs = start("problem=mail_topic|trec", "--multirun", "data.seed=1,2")
    assert [(config.data.seed, list(config.tasks), list(config.tasks["mail"].heads)) for config in configs] == [
        (1, ["mail", "trec"], ["topic"]),
        (2, ["mail", "trec"], ["topic"]),
    ]


def test_help_shows_the_tasks_of_a_problem(start, capsys):
    assert start("problem=mail_topic", "--help") == []
    shown = capsys.readouterr().out
    assert "  tasks.mail.heads.topic.kind=classification" in shown
    assert "tasks.mail.heads.tone" not in shown and "tasks.imdb" not in shown
