"""Samples of what is served: which texts, what is kept of them, and that no answer ever suffers from it."""

import json
import logging
import os
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from local_server import ask, classified, local_service, running
from test_bundle import HEADS, head, write_bundle

from serving.bundle import load_bundle
from serving.config import SamplesConfig
from serving.metrics import Metrics
from serving.sample_files import PATTERN, SampleFiles
from serving.samples import Samples, shortened


def config(folder: Path, **more: object) -> SamplesConfig:
    settings = {"dir": folder, "fraction": 1.0, "texts": False, "window": 2, "bytes": 1 << 20, "files": 4} | more
    return SamplesConfig(**settings)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(folder.glob(PATTERN)) for line in file.read_text().splitlines()]


def count_of(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value("bert_mtl_samples_total", {"version": "1", "outcome": outcome}) or 0.0


def asked(bundle_folder: Path, settings: SamplesConfig, *texts: list[str], seed: int = 1) -> Metrics:
    """The metrics of a server that has classified texts (and texts_b), a request, with samples."""
    metrics = Metrics()
    samples = Samples(settings, metrics, seed)
    service = local_service(load_bundle(bundle_folder), metrics=metrics, samples=samples)
    classified(service, *texts)
    samples.close()
    return metrics


def test_a_sample_tells_how_a_text_was_read_and_answered_but_not_the_text(tmp_path):
    bundle, folder = write_bundle(tmp_path / "bundle"), tmp_path / "samples"
    with running(bundle, samples=config(folder)) as address:
        body = {"texts": ["Good film, 電影", "a a a a a a a a"]}
        answer = httpx.post(f"{address}/classify", json=body, headers={"x-request-id": "mine-7"}).json()
        metrics = httpx.get(f"{address}/metrics").text
    first, second, window = lines(folder)
    labels = [result["imdb"] for result in answer["results"]]
    assert first.pop("time") <= second.pop("time") <= window.pop("time")
    assert first == {
        "version": "1", "request": "mine-7",
        "read": [{"tasks": ["tiny"], "tokens": [7], "unknown": 3, "truncated": False}],
        "answers": {
            "imdb": {
                "label": labels[0]["label"], "probability": round(labels[0]["probabilities"][labels[0]["label"]], 6)
            }
        },
    }  # fmt: skip
    assert second["read"] == [{"tasks": ["tiny"], "tokens": [8], "unknown": 0, "truncated": True}]
    # [UNK] is 1, a 5, good 6 and film 8; of the second text six pieces are read
    assert window == {"version": "1", "tasks": ["tiny"], "texts": 2, "pieces": {"1": 3, "5": 6, "6": 1, "8": 1}}
    assert 'bert_mtl_samples_total{outcome="written",version="1"} 2.0' in metrics


def test_texts_are_kept_where_that_is_asked_for(tmp_path):
    heads = {"follows": head("classification", [2], labels=["no", "yes"], reads="pair")}
    bundle = write_bundle(tmp_path / "bundle", heads=heads)
    asked(bundle, config(tmp_path / "samples", texts=True, window=9), ["good"], ["bad film"])
    (told,) = lines(tmp_path / "samples")
    assert (told["text"], told["text_b"], told["request"]) == ("good", "bad film", None)
    assert told["read"] == [{"tasks": ["tiny"], "tokens": [6], "unknown": 0, "truncated": False}]


def test_the_window_that_is_not_full_goes_untold(tmp_path):
    asked(write_bundle(tmp_path / "bundle"), config(tmp_path / "samples", window=3), ["good", "bad"])
    assert [set(told) for told in lines(tmp_path / "samples")] == [
        {"time", "version", "request", "read", "answers"}
    ] * 2


def test_the_fraction_of_all_texts_is_drawn_whatever_the_requests(tmp_path):
    def drawn(*counts: int) -> list[int]:
        samples = Samples(config(tmp_path, fraction=0.1), Metrics(), seed=3)
        places = [np.add(samples.drawn(count), sum(counts[:number])) for number, count in enumerate(counts)]
        samples.close()
        return np.concatenate(places).astype(int).tolist()

    whole = drawn(20_000)
    assert abs(len(whole) - 2000) < 130  # three deviations
    assert drawn(*[1] * 50, 0, 950, 19_000) == whole
    assert list(tmp_path.iterdir()) == []


def test_each_reading_of_a_text_counts_for_its_tasks(tmp_path):
    heads = HEADS | {
        "alike": head("similarity", [4], reads="apart", task="alike"),
        "words": head("mlm", [2], level="mask", reads="masks", task="words"),
    }
    bundle = write_bundle(tmp_path / "bundle", heads=heads)
    asked(bundle, config(tmp_path / "samples", window=2), ["good film"] * 2, ["bad"] * 2)
    told, _, *windows = lines(tmp_path / "samples")
    assert told["read"] == [
        {"tasks": ["tiny"], "tokens": [4], "unknown": 0, "truncated": False},
        {"tasks": ["alike"], "tokens": [4, 3], "unknown": 0, "truncated": False},
    ]  # no [MASK], so nothing was read for the third task
    assert set(told["answers"]) == {"imdb", "alike"}
    assert [(each["tasks"], each["pieces"]) for each in windows] == [
        (["tiny"], {"6": 2, "8": 2}), (["alike"], {"6": 2, "7": 2, "8": 2}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ({"label": "b", "probabilities": {"a": 1 / 3, "b": 2 / 3}}, {"label": "b", "probability": 0.666667}),
        ({"labels": ["x", "y"], "probabilities": {"x": 0.9, "y": 0.8}}, {"labels": ["x", "y"]}),
        ({"value": 2.5}, {"value": 2.5}),
        ({"similarity": 0.5}, {"similarity": 0.5}),
        ({"spans": [{"type": "who", "text": "Anna"}, {"type": "who", "text": "Bo"}]}, {"spans": {"who": 2}}),
        ({"vector": [1.0]}, None),
        ({"masks": [[{"token": "secret", "probability": 1.0}]]}, None),
    ],
)
def test_of_an_answer_only_what_tells_no_words_is_kept(answer, kept):
    assert shortened(answer) == kept


def test_a_folder_that_cannot_be_written_costs_no_answer_and_is_told_once(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    bundle = write_bundle(tmp_path / "bundle")
    with caplog.at_level(logging.ERROR, "serving.samples"):
        metrics = asked(bundle, config(tmp_path / "file" / "samples"), ["good", "bad", "film"])
    assert (count_of(metrics, "lost"), count_of(metrics, "written")) == (3, 0)
    (record,) = caplog.records
    assert f"samples are lost, until they can be written to {tmp_path}/file/samples again" in record.getMessage()


def test_on_a_full_disk_no_half_line_is_left_and_writing_goes_on_later(tmp_path, monkeypatch):
    real, full = os.write, [True, False]
    files = SampleFiles(tmp_path, 1000, 2)
    files.write(b"one\n")
    monkeypatch.setattr(os, "write", lambda file, line: real(file, line[:3]) if full.pop(0) else real(file, line))
    with pytest.raises(OSError, match="3 of 8 bytes could be written"):
        files.write(b"another\n")
    files.write(b"last\n")
    (file,) = tmp_path.glob(PATTERN)
    assert file.read_bytes() == b"one\nlast\n"


def test_files_are_bounded_in_size_and_number(tmp_path):
    files = SampleFiles(tmp_path, 8, 3)
    for number in range(10):
        files.write(f"line {number}\n".encode())
    files.close()
    kept = sorted(tmp_path.glob(PATTERN))
    assert [file.read_text() for file in kept] == ["line 4\nline 5\n", "line 6\nline 7\n", "line 8\nline 9\n"]


def test_a_file_that_was_taken_away_is_begun_anew(tmp_path):
    files = SampleFiles(tmp_path, 1000, 3)
    files.write(b"one\n")
    next(tmp_path.glob(PATTERN)).unlink()
    files.write(b"two\n")
    assert [file.read_text() for file in tmp_path.glob(PATTERN)] == ["two\n"]


def test_what_a_disk_is_too_slow_for_is_lost_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.samples.WAITING", 1)
    go = threading.Event()
    monkeypatch.setattr(SampleFiles, "write", lambda self, line: go.wait(20))
    metrics = Metrics()
    samples = Samples(config(tmp_path, window=99), metrics, seed=1)
    service = local_service(load_bundle(write_bundle(tmp_path / "bundle")), metrics=metrics, samples=samples)
    answers = ask(service, lambda started: started.classify(["good"] * 20))
    go.set()
    samples.close()
    assert len(answers.results) == 20
    written, lost = count_of(metrics, "written"), count_of(metrics, "lost")
    assert written + lost == 20 and 1 <= written <= 2
