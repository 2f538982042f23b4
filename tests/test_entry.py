"""The command line every entry point shares, on a small tree of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from conf.entry import ConfigError, Problem, Schema, compose, explained_keys, main, output_dir, validate

FILES = {
    "train.yaml": """
        defaults:
          - task: [imdb]
          - model: tiny
          - optional experiment: null
          - _self_
        rate: 5e-5  # peak learning rate
        steps: 10
        # what is kept
        # of a long text
        keep: head
        folder: runs/${model.name}  # where the run is written
        hydra:
          run:
            dir: out/single  # folder of a run
          sweep:
            dir: out/sweep  # folder of a sweep
            subdir: ${hydra.job.num}  # one folder a job
        """,
    "serve.yaml": """
        port: ???  # where it listens
        """,
    "compare.yaml": """
        runs: ???  # folders
        part: dev  # which
        """,
    "model/tiny.yaml": """
        # The smallest.
        # Here for tests.

        name: tiny  # its name
        layers: 2  # number of layers
        dropout: {rate: 0.1}  # share dropped
        """,
    "model/base.yaml": """
        name: base  # its name
        layers: 12  # number of layers
        dropout: {rate: 0.1}  # share dropped
        """,
    "task/imdb.yaml": """
        # @package tasks.imdb
        # what the head answers
        kind: classification
        labels: [neg, pos]  # in the order of their ids
        """,
    "task/snips.yaml": """
        # @package tasks.snips
        kind: tagging  # what the head answers
        labels: [O, B]  # in the order of their ids
        """,
    "experiment/deep.yaml": """
        # @package _global_
        defaults:
          - override /task: [imdb, snips]
        model:
          layers: 6  # deeper
        """,
}


class Dropout(Schema):
    rate: Annotated[float, Field(ge=0, lt=1)]


class Model(Schema):
    name: str
    layers: Annotated[int, Field(gt=0)]
    dropout: Dropout
    hidden_dim: int = 8


class Task(Schema):
    kind: Literal["classification", "tagging"]
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    weight: float | None = None


class Train(Schema):
    rate: float
    steps: int | Literal["auto"]
    keep: Literal["head", "tail"]
    folder: Path
    model: Model
    tasks: dict[str, Task]

    @field_validator("steps")
    @classmethod
    def _even(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value % 2:
            raise ValueError("be even")
        return value

    def problems(self) -> list[Problem]:
        if self.keep == "tail" and self.model.layers > 4:
            return [Problem("keep", "be head for models of more than 4 layers", self.keep, ["head"])]
        return []


class Serve(Schema):
    port: int


class Compare(Schema):
    positional = "runs"

    runs: list[str]
    part: str


class Unavailable(Exception):
    user_error = True


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [line[8:] for line in text.strip("\n").splitlines()]
        path.write_text("\n".join(lines).rstrip() + "\n")
    return folder


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    folder = write(tmp_path / "conf", FILES)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


def composed(tree: Path, *overrides: str) -> Train:
    return compose("train", list(overrides), Train, config_dir=tree)


def messages(tree: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        composed(tree, *overrides)
    return [str(problem) for problem in error.value.problems]


def run(tree: Path, *argv: str, job=None) -> list[Train]:
    seen: list[Train] = []
    main("train", Train, job or seen.append, argv=argv, config_dir=tree)
    return seen


def exit_of(tree: Path, capfd, *argv: str, job=None) -> tuple[object, str]:
    with pytest.raises(SystemExit) as stop:
        run(tree, *argv, job=job)
    return stop.value.code, capfd.readouterr().err


# What a configuration becomes.


def test_the_default_composition_is_typed(tree):
    config = composed(tree)
    assert (config.rate, config.steps, config.model.layers, config.model.hidden_dim) == (5e-5, 10, 2, 8)
    assert config.folder == Path("runs/tiny")
    assert config.tasks["imdb"].labels == ("neg", "pos")
    with pytest.raises(ValidationError):
        config.steps = 12


@pytest.mark.parametrize("choice", ["snips", "[snips]"])
def test_a_group_of_a_list_takes_one_name_and_a_list(tree, choice):
    assert list(composed(tree, f"task={choice}").tasks) == ["snips"]
    assert list(composed(tree, "task=[imdb,snips]").tasks) == ["imdb", "snips"]


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("5E-5", 5e-5), (".5", 0.5), ("3", 3.0)])
def test_numbers_of_the_command_line_stay_numbers(tree, text, value):
    rate = composed(tree, f"rate={text}").rate
    assert rate == value and isinstance(rate, float)


def test_an_experiment_changes_groups_and_keys(tree):
    config = composed(tree, "experiment=deep")
    assert (list(config.tasks), config.model.layers) == (["imdb", "snips"], 6)


def test_a_key_that_only_the_schema_knows_can_be_set(tree):
    config = composed(tree, "model.hidden_dim=16", "tasks.imdb.weight=2")
    assert (config.model.hidden_dim, config.tasks["imdb"].weight) == (16, 2.0)


# What is said about mistakes.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=1.5", "steps must be a whole number or be one of the options; got 1.5. Options: auto."),
        ("model.layers='3'", "model.layers must be a whole number; got '3'."),
        ("rate=fast", "rate must be a number; got fast."),
        ("model.layers=0", "model.layers must be greater than 0; got 0."),
        ("model.dropout.rate=1", "model.dropout.rate must be less than 1; got 1."),
        ("model.dropout.rate=-1", "model.dropout.rate must be at least 0; got -1."),
        ("steps=3", "steps must be even; got 3."),
        ("rate=null", "rate must be a number; got null."),
        ("keep=tial", "keep must be one of the options; got tial. Options: head, tail. Did you mean tail?"),
        ("tasks.imdb.labels=[pos]", "tasks.imdb.labels must have at least 2 entries; got [pos]."),
        ("tasks.imdb.labels=[pos,3]", "tasks.imdb.labels.1 must be text; got 3."),
        ("model.dropout=3", "model.dropout must be a section of keys; got 3."),
        (
            "model.layrs=3",
            "model.layrs must be a key of model; got layrs. "
            "Options: name, layers, dropout, hidden_dim. Did you mean layers?",
        ),
        (
            "layers=3",
            "layers must be a key of the configuration; got layers. Options: model.layers. Did you mean model.layers?",
        ),
        ("tasks.snips.weight=3", "tasks.snips must be a key of tasks; got snips. Options: imdb."),
        ("model.layers.x=3", "model.layers.x must be a key of model.layers; got x."),
        ("model=tine", "model must be one of the choices; got tine. Options: base, tiny. Did you mean tiny?"),
        ("task=[imdb,snips,imdb]", "task must name each choice once; got imdb."),
        ("task=[imdb,snip]", "task must be one of the choices; got snip. Options: imdb, snips. Did you mean snips?"),
        (
            "+model.depth=3",
            "model.depth must be a key of model; got depth. Options: name, layers, dropout, hidden_dim.",
        ),
        ("folder=${nowhere}", "folder must be readable (Interpolation key 'nowhere' not found); got ${nowhere}."),
        ("steps=[1", "steps must be written as key=value, a value with special characters in quotes; got steps=[1."),
        ("steps", "steps must be written as key=value, a value with special characters in quotes; got steps."),
        (
            "steps=2,4",
            "steps must be one value (a list is written [a,b]; a sweep needs --multirun); got 2,4.",
        ),
    ],
)
def test_a_mistake_names_key_rule_value_and_options(tree, override, message):
    found = messages(tree, *override.split(" "))
    assert [line for line in found if line.split(" ")[0] == message.split(" ")[0]] == [message]
    assert len(found) == 1


def test_a_wrong_name_is_looked_for_among_the_groups_too(tree):
    (message,) = messages(tree, "tsk=imdb")
    assert message.endswith("Did you mean task?") and "hydra" not in message


def test_all_mistakes_are_reported_at_once(tree):
    with pytest.raises(ConfigError) as error:
        composed(tree, "task=[imbd]", "rat=1", "model.layers=x", "keep=[", "folder=${no}", "~absent")
    assert [problem.key for problem in error.value.problems] == [
        "task",
        "keep",
        "rat",
        "absent",
        "folder",
        "model.layers",
    ]
    assert str(error.value).startswith("6 problems in the configuration:\ntask must be one of the choices; got imbd.")


def test_a_combination_is_reported_beside_a_wrong_field(tree):
    assert messages(tree, "model=base", "keep=tail", "rate=x") == [
        "rate must be a number; got x.",
        "keep must be head for models of more than 4 layers; got tail. Options: head.",
    ]


def test_a_missing_value_and_a_missing_choice_must_be_given(tree):
    with pytest.raises(ConfigError, match="^port must be given; got nothing.$"):
        compose("serve", [], Serve, config_dir=tree)
    assert compose("serve", ["port=80"], Serve, config_dir=tree).port == 80
    text = (tree / "train.yaml").read_text()
    (tree / "train.yaml").write_text(text.replace("model: tiny", "model: ???"))
    assert messages(tree, "rate=x") == [
        "model must be chosen; got nothing. Options: base, tiny.",
        "folder must be readable (Interpolation key 'model.name' not found); got runs/${model.name}.",
        "rate must be a number; got x.",
    ]


def test_a_broken_file_is_named(tree):
    (tree / "model" / "broken.yaml").write_text("layers: [1\nname: x\n")
    (message,) = messages(tree, "model=broken")
    assert message.startswith("model must fit the tree (") and "broken.yaml" in message


def test_a_file_that_names_a_missing_choice_lists_the_choices(tree):
    text = (tree / "train.yaml").read_text()
    (tree / "train.yaml").write_text(text.replace("[imdb]", "[imbd]"))
    assert messages(tree) == ["task must be one of the choices; got imbd. Options: imdb, snips. Did you mean imdb?"]


def test_a_mistake_of_a_file_is_said_like_one_of_the_command_line(tree):
    (tree / "model" / "tiny.yaml").write_text("name: tiny\nlayers: 2\nlayer: 3\ndropout: {rate: 0}\n")
    assert messages(tree, "keep=tail", "model.layers=9") == [
        "model.layer must be a key of model; got layer. "
        "Options: name, layers, dropout, hidden_dim. Did you mean layers?",
        "keep must be head for models of more than 4 layers; got tail. Options: head.",
    ]


def test_the_members_of_a_union_are_no_part_of_the_key():
    class Mlm(Schema):
        kind: Literal["mlm"]
        share: float

    class Tagging(Schema):
        kind: Literal["tagging"]
        labels: list[str]

    class Heads(Schema):
        heads: dict[str, Annotated[Mlm | Tagging, Field(discriminator="kind")]]

    def said(head):
        with pytest.raises(ConfigError) as error:
            validate({"heads": {"a": head}}, Heads)
        return str(error.value)

    assert said({"kind": "mlm", "share": "x"}) == "heads.a.share must be a number; got x."
    assert said({"kind": "mlm"}) == "heads.a.share must be given; got nothing."
    assert said({"kind": "tag"}).startswith("heads.a.kind must be one of the options; got tag. Options: mlm, tagging.")
    assert said({}) == "heads.a.kind must be given; got nothing. Options: mlm, tagging."


# Running.


def test_a_run_gets_the_typed_config_and_its_folder(tree):
    folders = []
    seen = run(tree, "rate=1", job=lambda config: folders.append((config.rate, output_dir())))
    assert seen == [] and folders == [(1.0, Path.cwd() / "out" / "single")]
    assert folders[0][1].is_dir()


def test_flags_may_stand_between_overrides(tree):
    assert [config.steps for config in run(tree, "rate=1", "--multirun", "steps=2,4")] == [2, 4]


def test_each_job_of_a_sweep_has_a_folder_of_its_own(tree):
    folders = []
    run(tree, "-m", "model=tiny,base", "model.hidden_dim=range(1,3)", job=lambda _: folders.append(output_dir().name))
    assert folders == ["0", "1", "2", "3"]


def test_every_value_of_a_sweep_is_checked_before_the_first_job(tree, capfd):
    code, text = exit_of(tree, capfd, "-m", "steps=2,3,4", "model=tiny,huge", "keep=choice(head,tial)")
    assert code == 2
    assert text.splitlines() == [
        "3 problems in the configuration:",
        "keep must be one of the options; got tial. Options: head, tail. Did you mean tail?",
        "model must be one of the choices; got huge. Options: base, tiny.",
        "steps must be even; got 3.",
    ]
    assert list(Path.cwd().iterdir()) == []


def test_a_wrong_command_line_ends_with_2_and_leaves_nothing_on_disk(tree, capfd):
    code, text = exit_of(tree, capfd, "rate=x", "model=huge")
    assert code == 2 and text.startswith("2 problems in the configuration:\n") and "Traceback" not in text
    assert list(Path.cwd().iterdir()) == []


def fail(error: BaseException):
    def job(_):
        raise error

    return job


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Unavailable("the archive is not there"), 1, "the archive is not there\n"),
        (ConfigError([Problem("rate", "be small", 3)]), 2, "rate must be small; got 3.\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_mistake_of_the_user_ends_a_job_with_its_message_alone(tree, capfd, error, code, text):
    assert exit_of(tree, capfd, job=fail(error)) == (code, text)


def test_a_mistake_of_the_program_keeps_its_traceback(tree):
    with pytest.raises(ZeroDivisionError, match="real"):
        run(tree, job=fail(ZeroDivisionError("real")))


def test_a_folder_given_by_config_dir_is_searched_as_well(tree, tmp_path):
    write(tmp_path / "mine", {"model/mine.yaml": FILES["model/tiny.yaml"].replace("layers: 2", "layers: 3")})
    extra = tmp_path / "mine"
    assert [c.model.layers for c in run(tree, "--config-dir", str(extra), "model=mine")] == [3]
    assert [c.model.layers for c in run(tree, f"hydra.searchpath=[file://{extra}]", "model=mine")] == [3]
    assert [c.model.layers for c in run(tree, "--config-path", str(tree), "hydra.job.num=7")] == [2]


def test_cfg_prints_the_composition_and_runs_nothing(tree, capsys):
    assert run(tree, "--cfg", "job", "rate=1e-3") == []
    assert "rate: 0.001\n" in capsys.readouterr().out


# Explaining.


def test_every_value_of_a_file_has_its_comment(tree):
    found = {(e.file.relative_to(tree).as_posix(), e.key): e.comment for e in explained_keys(tree)}
    assert found["train.yaml", "rate"] == "peak learning rate"
    assert found["train.yaml", "keep"] == "what is kept of a long text"
    assert found["train.yaml", "steps"] is None
    assert found["train.yaml", "hydra.sweep.subdir"] == "one folder a job"
    assert found["model/tiny.yaml", "name"] == "its name"
    assert found["task/imdb.yaml", "kind"] == "what the head answers"
    assert not [key for _, key in found if "defaults" in key or key in ("hydra", "model.dropout.rate")]


def test_comments_are_told_from_values_that_look_like_them(tmp_path):
    lines = [
        "a: 'x # y'  # one",
        "b: x#y",
        "c: |  # two",
        "  # text",
        "d:  # three",
        "  - 1",
        "e: {f: '#'}  # four",
        "# of nothing",
        "",
        "g: 1",
    ]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    assert [e.comment for e in explained_keys(tmp_path)] == ["one", None, "two", "three", "four", None]


def test_help_explains_groups_keys_types_and_values(tree, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert run(tree, "--help", "model=base", "rate=1e-3") == []
    lines = capsys.readouterr().out.splitlines()
    assert "  model       *base  tiny" in lines
    assert "  task        *imdb  snips" in lines
    assert "  experiment  deep" in lines
    assert "  rate=0.001                 (number) peak learning rate" in lines
    assert "  keep=head                  (head | tail) what is kept of a long text" in lines
    assert "  model.layers=12         (whole number > 0) number of layers" in lines
    assert "  tasks.imdb.kind=classification  (classification | tagging) what the head answers" in lines
    assert "  model.dropout.rate=0.1  (number >= 0, < 1)" in lines
    assert max(map(len, lines)) <= 120 and not [line for line in lines if "hydra" in line]
    assert list(Path.cwd().iterdir()) == []


def test_help_names_the_keys_that_tasks_and_heads_of_each_kind_may_have_besides(capsys, monkeypatch):
    from bert_mtl import train

    monkeypatch.setattr(sys, "argv", ["train", "task=[snips]", "--help"])
    monkeypatch.setenv("COLUMNS", "140")
    train.main()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    of_intent = [line.split()[0].rpartition(".")[2] for line in lines if line.startswith("tasks.snips.heads.intent.")]
    assert of_intent == ["kind=classification", *of_intent[1:]] and "crf" not in of_intent
    assert {"weight", "share_head", "label_smoothing", "class_weights", "metric"} <= set(of_intent)
    assert "tasks.snips.heads.slots.crf (true | false)" in [" ".join(line.split()) for line in lines]
    assert "tasks.snips.limit (whole number > 0 | null)" in [" ".join(line.split()) for line in lines]
    assert any(line.startswith('problem="imdb|snips_intent"') for line in lines)


def test_a_key_of_another_kind_is_answered_with_the_keys_of_its_own():
    from bert_mtl.config import TrainConfig

    with pytest.raises(ConfigError, match=r"intent.crf must be a key of .*; got crf. Options: ([\w, ]+)\.$") as error:
        compose("train", ["task=[snips]", "tasks.snips.heads.intent.crf=true"], TrainConfig)
    assert "class_weights" in str(error.value) and "minimum_score" not in str(error.value)


def test_a_folder_of_own_files_that_is_not_there_is_named(tree, capsys):
    with pytest.raises(SystemExit) as stop:
        run(tree, "--config-dir", "nowhere", "task=imdb")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "--config-dir must be a folder; got nowhere.\n"


def test_a_file_that_does_not_say_that_it_is_the_task_of_its_name_is_named(tree, capsys):
    (tree / "task" / "copy.yaml").write_text((tree / "task" / "imdb.yaml").read_text())
    (tree / "task" / "bare.yaml").write_text("kind: classification\nlabels: [a, b]\n")
    for choice, named, own in (
        ("[imdb,copy]", "copy", "tasks.imdb"),
        ("copy", "copy", "tasks.imdb"),
        ("bare", "bare", "task"),
    ):
        with pytest.raises(SystemExit):
            run(tree, f"task={choice}")
        said = capsys.readouterr().err
        assert (
            f"task must choose files whose first line is # @package tasks.{named} (theirs is {own}); got {named}."
            in said
        )


def test_a_sweep_has_folders_of_its_own(capsys, monkeypatch):
    from bert_mtl import train

    monkeypatch.setattr(sys, "argv", ["train", "--multirun", "seed=1,2", "run.dir=runs/same"])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 2
    assert "run.dir must be left out of a sweep, whose jobs have numbered folders" in capsys.readouterr().err


def test_an_error_stands_in_the_log_of_the_run_too(tree, capsys):
    class Wrong(Exception):
        user_error = True

    def job(config):
        raise Wrong("the data must be there; got nothing.")

    with pytest.raises(SystemExit):
        main("train", Train, job, argv=["hydra.job_logging.root.handlers=[file]"], config_dir=tree)
    assert capsys.readouterr().err == "the data must be there; got nothing.\n"
    (log,) = Path("out/single").glob("*.log")
    assert log.read_text().rstrip().endswith("the data must be there; got nothing.")


def test_help_fits_a_narrow_terminal(tree, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    run(tree, "--help")
    usage, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60


def test_the_program_is_named_as_it_was_started(tree):
    module = tree.parent / "work" / "app.py"
    module.write_text(
        "from conf.entry import Schema, main\n"
        "class Serve(Schema):\n    port: int\n"
        f"main('serve', Serve, print, config_dir={str(tree)!r})\n"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "app"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, env=environment, check=True)
    assert shown.stdout.startswith("Usage: python -m app [group=choice ...]")
    wrong = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", "port must be given; got nothing.\n")


# Arguments without a key.


def runs_of(tree: Path, *argv: str) -> list[str]:
    seen: list[Compare] = []
    main("compare", Compare, seen.append, argv=argv, config_dir=tree)
    return seen[0].runs


def test_arguments_without_a_key_are_the_list_that_the_schema_names(tree):
    given = ["runs/a", "it's, [b] {c}", "${part}", "back\\", "~home", "é 字", "3", "null"]
    assert runs_of(tree, *given[:2], "part=test", *given[2:]) == given
    assert runs_of(tree, "runs=[a,b]") == ["a", "b"]


def test_paths_that_exist_or_have_a_slash_before_their_sign_need_no_key(tree):
    Path("lr=1").mkdir()
    assert runs_of(tree, "lr=1", "sweeps/lr=2") == ["lr=1", "sweeps/lr=2"]


def test_a_list_is_given_once_and_a_schema_without_one_takes_no_such_arguments(tree, capfd):
    with pytest.raises(SystemExit) as stop:
        runs_of(tree, "a", "runs=[b]")
    assert (stop.value.code, capfd.readouterr().err) == (
        2,
        "runs must be given once, as arguments or as a key; got runs=[b] a.\n",
    )
    code, told = exit_of(tree, capfd, "runs/a")
    assert code == 2 and "runs/a must be written as key=value" in told


def test_help_shows_where_arguments_go(tree, capfd):
    main("compare", Compare, print, argv=["--help"], config_dir=tree)
    assert " [runs ...] [group=choice ...] [key=value ...]" in capfd.readouterr().out
