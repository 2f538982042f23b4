"""Samples of a server beside what its model learned from: which signals are told, and when a shift is one."""

import base64
import json
import signal
from collections import Counter, deque
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_bundle import HEADS, write_bundle
from test_samples import asked
from test_samples import config as sampling

from bert_mtl.commands import DriftConfig, moment
from bert_mtl.drift import drift, track
from bert_mtl.samples import Asked, Samples, SamplesError, read_samples
from bert_mtl.signals import signals, verdict
from bert_mtl.tracking import Tracker
from conf import entry
from conf.errors import ConfigError
from serving.bundle import BundleError
from serving.config import ServeConfig

SEEN = base64.b64encode(np.packbits(np.isin(np.arange(16), [5, 6, 7, 8])).tobytes()).decode()
TASK = {
    "examples": 100, "rows": 100, "tokens": 400, "truncated": 0, "unknown": 0,
    "lengths": {"edges": [2, 3, 4, 6, 8], "counts": [0, 50, 50, 0]},
    "pieces": {"total": 200, "counts": {"6": 100, "8": 50}, "seen": SEEN},
}  # fmt: skip
LABELS = {"task": "tiny", "kind": "classification", "labels": {"neg": 50, "pos": 50}}


def training(task: dict = TASK, **heads: dict) -> dict:
    return {"format": 1, "tasks": {"tiny": task}, "heads": heads or {"imdb": LABELS}}


def served(asked: Asked, **answers: list[dict]) -> Samples:
    found = Samples(deque(), texts=asked.texts)
    found.tasks["tiny"] = asked
    found.answers.update(answers)
    return found


def rows(reference: dict, samples: Samples, least: int = 10) -> dict:
    return {row.key: row for row in signals(reference, samples, ["tiny"], least)}


# --- signals


def test_texts_like_those_of_train_show_no_shift():
    like = Asked([3] * 50 + [5] * 50, 100, 0, 0, 100, Counter({6: 100, 8: 50, 7: 50}))
    found = rows(training(), served(like, imdb=[{"label": "neg"}] * 52 + [{"label": "pos"}] * 48))
    assert {key: row.verdict for key, row in found.items()} == dict.fromkeys(
        [
            "drift/tiny/length", "drift/tiny/truncated", "drift/tiny/unknown", "drift/tiny/vocabulary",
            "drift/tiny/new_pieces", "drift/imdb/psi",
        ],
        "none shown",
    )  # fmt: skip
    assert (found["drift/tiny/length"].shift, found["drift/tiny/length"].p) == (0, 1)
    assert (found["drift/tiny/length"].reference, found["drift/tiny/length"].now) == (4, 4)


def test_each_signal_tells_its_own_shift():
    other = Asked([8] * 100, 100, 90, 160, 100, Counter({1: 160, 7: 340, 9: 100}))
    found = rows(training(), served(other, imdb=[{"label": "neg"}] * 20 + [{"label": "pos"}] * 80))
    assert {row.verdict for row in found.values()} == {"large"}
    told = {key.rpartition("/")[2]: (row.measure, row.reference, row.now) for key, row in found.items()}
    assert told == {
        "length": ("psi", 4, 8), "truncated": ("psi", 0, 0.9), "unknown": ("share", 0, 0.2),
        "vocabulary": ("jensen-shannon", None, None), "new_pieces": ("share", 0, pytest.approx(260 / 600)),
        "psi": ("psi", 0.5, 0.2),
    }  # fmt: skip
    assert found["drift/imdb/psi"].detail == "neg"
    p, q = 50.5 / 101, 20.5 / 101
    assert found["drift/imdb/psi"].shift == pytest.approx((q - p) * np.log(q / p) + (p - q) * np.log((1 - q) / p))


def test_numbers_and_entities_are_told_in_deviations():
    stars = {"task": "tiny", "kind": "regression", "examples": 400, "mean": 2.0, "deviation": 2.0}
    spans = {"task": "tiny", "kind": "tagging", "labels": {"who": 30, "where": 10}}
    spans |= {"examples": 40, "mean": 1.0, "deviation": 0.5}
    answers = {"stars": [{"value": 2.0}, {"value": 4.0}] * 50, "spans": [{"spans": {"who": 1}}] * 100}
    found = rows(training(stars=stars, spans=spans), served(Asked(), **answers))
    assert {key: (row.shift, row.verdict) for key, row in found.items() if key != "drift/spans/psi"} == {
        "drift/stars/value": (0.5, "large"), "drift/spans/entities": (0.0, "none shown"),
    }  # fmt: skip
    assert (found["drift/spans/psi"].p, found["drift/spans/psi"].verdict) == (None, "large")


def test_of_many_labels_the_one_that_shifted_most_is_told():
    tones = {"task": "tiny", "kind": "multilabel", "examples": 1000, "labels": {"dry": 500, "wry": 100, "shy": 0}}
    answers = [{"labels": ["dry", "wry"]}] * 50 + [{"labels": []}] * 50
    (row,) = rows(training(tones=tones), served(Asked(), tones=answers)).values()
    assert (row.detail, row.reference, row.now, row.verdict) == ("wry", 0.1, 0.5, "large")
    assert row.p < 1e-20


@pytest.mark.parametrize(
    ("measure", "shift", "p", "enough", "said"),
    [
        ("psi", 0.0999, 0.0, True, "none shown"),
        ("psi", 0.1, 0.0, True, "moderate"),
        ("psi", 0.25, None, True, "large"),
        ("psi", 0.25, 0.01, True, "none shown"),
        ("psi", 0.25, 0.0, False, "too few texts"),
        ("deviations", -0.5, 0.0, True, "large"),
    ],
)
def test_a_shift_is_judged_by_its_size_where_it_is_not_chance(measure, shift, p, enough, said):
    assert verdict(measure, shift, p, enough) == said


# --- samples


def line(time: str, version: str = "1", **more: object) -> str:
    read = [{"tasks": ["tiny"], "tokens": [4], "unknown": 0, "truncated": False}]
    told = {"time": time, "version": version, "request": "r", "read": read, "answers": {"imdb": {"label": "pos"}}}
    return json.dumps(told | more)


def test_only_whole_lines_of_the_version_and_time_count(tmp_path):
    early, late = "2026-11-01T00:00:00.000+00:00", "2026-11-02T00:00:00.000+00:00"
    lines = [line(early), line(late), line(late, "2"), line(late, read=3), "{", line(late)[:-5]]
    (tmp_path / "samples-1.jsonl").write_text("\n".join(lines))
    found = read_samples(tmp_path, {"1"}, datetime(2026, 11, 1, 12, tzinfo=UTC), last=5)
    assert (found.texts, found.others, found.broken, len(found.last)) == (1, 1, 2, 1)
    assert found.answers["imdb"] == [{"label": "pos"}]
    with pytest.raises(SamplesError, match=r"samples must hold some of version 3; there are of 1, 2: "):
        read_samples(tmp_path, {"3"}, None, last=5)
    with pytest.raises(
        SamplesError, match=r"samples must be the folder that the server's samples.dir names; got .*no\."
    ):
        read_samples(tmp_path / "no", {"1"}, None, last=5)


def test_times_are_named_or_counted_back():
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert moment("2026-11-01T08:00:00+02:00", now) == datetime(2026, 11, 1, 6, tzinfo=UTC)
    assert moment("2026-11-01", now) == datetime(2026, 11, 1, tzinfo=UTC)
    assert moment("36h", now) == datetime(2026, 11, 27, tzinfo=UTC)
    with pytest.raises(ConfigError, match="since must be a time such as .*; got soon"):
        entry.compose("drift", ["bundle=b", "samples=s", "since=soon"], DriftConfig)


# --- the command


def config(bundle: Path, samples: Path, *options: str) -> DriftConfig:
    given = [f"bundle='{bundle}'", f"samples='{samples}'", f"output='{samples}/drift.json'", *options]
    return entry.compose("drift", given, DriftConfig)


def test_what_a_server_was_asked_is_compared_with_its_bundle(tmp_path, capsys):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/training.json").write_text(json.dumps(training()))
    bundle = write_bundle(tmp_path / "1", heads=HEADS)
    texts = ["good film", "good", "電影 film", "a bad bad bad film"] * 10
    asked(bundle, sampling(tmp_path / "samples", window=40), texts)
    drift(config(bundle, tmp_path / "samples", "least=40"))
    report = json.loads((tmp_path / "samples/drift.json").read_text())
    assert (report["bundle"], report["version"], report["texts"]) == ("tiny", "1", 40)
    found = {(row["head"], row["signal"]): row for row in report["signals"]}
    assert (found["", "length"]["now"], found["", "unknown"]["now"]) == ((4 + 3 + 5 + 7) / 4, 2 / 19)
    assert found["", "new_pieces"]["now"] == pytest.approx(2 / 11)  # only [UNK] is new
    assert found["imdb", "labels"]["texts"] == 40
    said = capsys.readouterr().out
    assert "new_pieces" in said and "large" in said
    assert f"report: {tmp_path}/samples/drift.json" in said


def test_a_bundle_without_its_numbers_and_a_task_it_lacks_are_told(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"bundle must hold training.json; got .* without it. Export the run where"):
        drift(config(bundle, tmp_path))
    (bundle / "training.json").write_text(json.dumps(training()))
    write_bundle(bundle)
    with pytest.raises(ConfigError, match=r"task must be among those of training.json; got imdb. Options: tiny"):
        drift(config(bundle, tmp_path, "task=imdb"))


def test_a_watch_waits_for_samples_and_looks_until_it_is_ended(tmp_path, monkeypatch, capsys):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/training.json").write_text(json.dumps(training()))
    settings, pauses = config(write_bundle(tmp_path / "bundle"), tmp_path / "samples", "watch=7"), []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 1:
            signal.raise_signal(signal.SIGTERM)
        (tmp_path / "samples").mkdir()
        (tmp_path / "samples/samples-1.jsonl").write_text(line("2026-11-02T00:00:00.000+00:00") + "\n")

    monkeypatch.setattr("bert_mtl.drift.sleep", pause)
    before = signal.getsignal(signal.SIGTERM)
    drift(settings)
    assert (pauses, signal.getsignal(signal.SIGTERM)) == ([7, 7], before)
    assert "samples must be the folder that the server's samples.dir names" in capsys.readouterr().out
    assert json.loads((tmp_path / "samples/drift.json").read_text())["texts"] == 1


class Told(Tracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.values: dict = {}
        self.tables: dict = {}

    def log(self, values, step):
        self.values[step] = values

    def table(self, name, columns, rows):
        self.tables[name] = (columns, rows)


def test_a_tracker_gets_scalars_and_two_tables(tmp_path):
    (tmp_path / "samples-1.jsonl").write_text(line("2026-11-02T00:00:00.000+00:00", text="good film") + "\n")
    samples, told = read_samples(tmp_path, {"1"}, None, last=5), Told()
    track(told, list(signals(training(), samples, ["tiny"], 1)), samples, 7)
    assert told.values[7].keys() == {
        "drift/tiny/length", "drift/tiny/truncated", "drift/tiny/unknown", "drift/imdb/psi",
    }  # fmt: skip
    columns, found = told.tables["drift"]
    assert [row[columns.index("signal")] for row in found] == ["length", "truncated", "unknown", "labels"]
    columns, found = told.tables["predictions"]
    assert dict(zip(columns, found[0], strict=True)) == {
        "time": "2026-11-02T00:00:00.000+00:00", "request": "r", "tokens": 4, "unknown": 0, "truncated": False,
        "text": "good film", "text_b": "", "imdb": '{"label": "pos"}',
    }  # fmt: skip


def test_a_text_that_no_task_has_read_or_several_have_is_a_row_too(tmp_path):
    twice = [{"tasks": ["tiny"], "tokens": [4], "unknown": 1, "truncated": False},
             {"tasks": ["alike"], "tokens": [4, 3], "unknown": 1, "truncated": True}]  # fmt: skip
    rows = [line(f"2026-11-02T00:00:0{place}.000+00:00", read=read) for place, read in enumerate(([], twice))]
    (tmp_path / "samples-1.jsonl").write_text("\n".join(rows) + "\n")
    samples, told = read_samples(tmp_path, {"1"}, None, last=5), Told()
    track(told, [], samples, 7)
    columns, found = told.tables["predictions"]
    assert [dict(zip(columns, row, strict=True))["tokens"] for row in found] == [0, 11]
    assert [row[3:5] for row in found] == [[0, False], [2, True]]


def test_the_command_lines_of_the_containers_compose():
    file = Path(__file__).parents[1] / "deploy/compose.watch.yaml"
    services = yaml.safe_load(file.read_text())["services"]
    assert entry.compose("serve", services["bert_mtl"]["command"], ServeConfig).samples.dir == Path("/drift/samples")
    module, *overrides = [each.replace("${TRACKING:-none}", "none") for each in services["drift"]["command"]]
    assert (module, entry.compose("drift", overrides, DriftConfig).watch) == ("bert_mtl.drift", 600)
