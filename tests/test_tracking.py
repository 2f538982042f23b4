"""What trackers are told of a run, read back by their own readers; and that none of them ends a training."""

import http.server
import json
import logging
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tensorflow as tf
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bert_mtl.config import TrackingConfig, TrainConfig
from bert_mtl.history import read_history
from bert_mtl.tracking import Careful, Job, Package, Tracker, open_tracker
from bert_mtl.tracking.history_file import History
from bert_mtl.tracking.names import better, path_of
from bert_mtl.train import train
from conf import entry
from conf.errors import ConfigError

KEY = "k" * 40
CLOSED = "http://127.0.0.1:9"


def tracking(kind: str, **changes) -> TrackingConfig:
    settings = entry.compose("train", [f"tracking={kind}"], TrainConfig).tracking
    return settings.model_copy(update=changes)


def lines_of(folder: Path) -> list[dict]:
    """The records of the one offline run in a folder, by wandb's own reader."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


def of_type(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


@pytest.fixture(scope="module", autouse=True)
def no_account(tmp_path_factory):
    """No key of the machine's, no service: wandb talks to a port where nobody listens."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(home / "netrc"))
        patch.setenv("WANDB_CONFIG_DIR", str(home))
        patch.setenv("WANDB_BASE_URL", CLOSED)
        wandb.teardown()
        yield patch
    wandb.teardown()


@pytest.fixture(scope="module")
def tracked(multi_options, tmp_path_factory) -> tuple[Path, list[dict], list[str]]:
    """A run of three heads that should have gone online, its records, and the warnings of its log."""
    folder, lines = tmp_path_factory.mktemp("tracked") / "run-1", []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: lines.append(record.getMessage())
    options = [option for option in multi_options if not option.startswith("+tasks.alike")]
    options += ["train.epochs=2", "tracking=wandb", "tracking.mode=online", "tracking.timeout=2", "tracking.every=2"]
    options += ["tracking.group=group-1", "train.report=true", f"run.dir={folder}"]
    logging.getLogger("bert_mtl").addHandler(listener)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        train(entry.compose("train", options, TrainConfig))
    logging.getLogger("bert_mtl").removeHandler(listener)
    return folder, lines_of(folder), lines


def test_without_a_network_the_run_is_kept_offline_and_said_to_be(tracked):
    _, _, warnings = tracked
    (told,) = [line for line in warnings if line.startswith("wandb: the run not written")]
    assert ("connection refused" in told or "deadline exceeded" in told) and told.endswith("It is kept offline instead")


def test_wandb_holds_the_resolved_configuration_tags_group_and_kind(tracked):
    folder, records, _ = tracked
    (run,) = of_type(records, "run")
    config = run["config"]["update"]
    assert (config["train"]["epochs"], config["seed"], config["data"]["source"]) == (2, 1, "sample")
    assert config["task_names"] == "imdb+numbers+words"
    assert config["tasks"]["numbers"]["heads"]["spans"]["kind"] == "tagging"
    assert run["tags"] == ["imdb", "numbers", "words", "sample"]
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("group-1", "train", "run-1")
    assert run["run_id"] == json.loads((folder / "wandb.json").read_text())["id"]


def test_wandb_holds_the_commit_where_there_is_one(tracked):
    folder, records, _ = tracked
    known = json.loads((folder / "origin.json").read_text())["git"]
    told = [found["git"].get("commit") for found in of_type(records, "environment") if "git" in found]
    assert told[:1] == ([known["commit"]] if known else [])


def test_wandb_holds_the_curves_of_every_head_and_their_best_values(tracked):
    folder, records, _ = tracked
    history = of_type(records, "history")
    values = {name for line in history for name in line["item"]}
    assert values >= {
        "imdb/loss", "numbers/spans/loss", "words/loss", "loss", "imdb/dev_accuracy", "numbers/spans/dev_f1",
        "words/dev_perplexity", "optimizer/learning_rate", "optimizer/gradient_norm",
        "mixing/imdb", "mixing/numbers", "weight/numbers/spans", "weight/imdb", "speed/tokens_per_second",
        "packing/fill", "compile_seconds", "score", "epoch", "step",
    }  # fmt: skip
    defined = {metric["name"]: metric for metric in of_type(records, "metric") if "name" in metric}
    assert defined["imdb/dev_accuracy"]["summary"] == {"max": True}
    assert defined["words/dev_perplexity"]["summary"] == {"min": True}
    assert {metric["step_metric"] for metric in defined.values()} == {"step"}
    dev = [line["imdb/dev_accuracy"] for line in read_history(folder) if "imdb/dev_accuracy" in line]
    summary: dict = {}
    for found in of_type(records, "summary"):
        summary |= found["update"]
    assert (
        summary["imdb/test_accuracy"] == json.loads((folder / "metrics.json").read_text())["test"]["imdb"]["accuracy"]
    )
    assert len(dev) == 2 and summary["imdb/dev_accuracy"]["max"] == pytest.approx(max(dev))


def test_wandb_holds_errors_predictions_and_diagrams_as_tables(tracked):
    folder, records, _ = tracked
    last: dict = {}
    for line in of_type(records, "history"):
        last |= line["item"]
    for name in ("imdb/dev_predictions", "numbers/spans/dev_predictions", "imdb/dev_confusion_table",
                 "imdb/dev_calibration_table", "imdb/dev_precision_recall_table"):  # fmt: skip
        assert last[f"{name}._type"] == "table-file"
    (run,) = (folder / "wandb").glob("offline-run-*")
    table = json.loads((run / "files" / last["imdb/dev_predictions.path"]).read_text())
    assert table["columns"] == ["text", "text_b", "label", "answer", "tokens"] and len(table["data"]) == 32
    assert {row[2] for row in table["data"]} == {"neg", "pos"}
    counts = json.loads((run / "files" / last["imdb/dev_confusion_table.path"]).read_text())
    assert sum(row[2] for row in counts["data"]) == 32


def test_wandb_holds_the_way_from_records_to_the_run(tracked):
    _, records, _ = tracked
    found = {each["name"]: each for each in of_type(records, "artifact") if each["type"] != "run_table"}
    assert {name: each["type"] for name, each in found.items()} == {
        "data-imdb": "dataset", "data-numbers": "dataset", "data-words": "dataset", "run-imdb-numbers-words": "model",
    }  # fmt: skip
    assert found["data-imdb"]["use_after_commit"] and "sample" in found["data-imdb"]["aliases"]
    made = found["run-imdb-numbers-words"]
    assert not made.get("use_after_commit") and {"best", "run-1", "latest"} == set(made["aliases"])
    assert {"weights.safetensors", "config.yaml", "metrics.json", "report.html"} <= {
        entry["path"] for entry in made["manifest"]["contents"]
    }


def test_wandb_holds_what_the_machine_did(tracked):
    assert any("memory_percent" in stats["item"] for stats in of_type(tracked[1], "stats"))


def test_wandbs_own_tools_find_a_finished_run_to_send(tracked):
    folder, _, _ = tracked
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (told["state"], told["exit_code"]) == ("finished", 0)
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(run)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Would sync 1 run(s)" in told.stdout + told.stderr


def test_a_resumed_run_goes_on_under_its_id_and_repeats_nothing(tracked):
    folder, _, _ = tracked
    before = read_history(folder)
    (folder / "metrics.json").unlink()  # as if it had been killed before its last line
    wandb.teardown()  # another process would go on
    train(entry.compose("train", [f"run.resume={folder}"], TrainConfig))
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    (kept,) = {run.name.rpartition("-")[2] for run in runs}
    assert len(runs) == 2 and kept == json.loads((folder / "wandb.json").read_text())["id"]
    assert [line["step"] for line in read_history(folder)] == [line["step"] for line in before]


class Service(http.server.ThreadingHTTPServer):
    """What wandb's own process asks of the service for a run without artifacts; keeps what it is sent. Without `knows`
    it takes the key for a wrong one; once `deaf`, it answers nothing more."""

    def __init__(self, knows: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.knows, self.deaf, self.sent = knows, threading.Event(), list[tuple[str, dict]]()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: bytes) -> tuple[int, dict]:
        if not self.knows:
            return 401, {"errors": [{"message": "user is not logged in"}]}
        if path.endswith("/file_stream"):
            self.sent.append(("file_stream", json.loads(body)))
        if path != "/graphql":
            return 200, {}
        asked = json.loads(body)
        name, given = re.search(r"(?:query|mutation) (\w+)", asked["query"])[1], asked.get("variables") or {}
        self.sent.append((name, given))
        project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "team"}}
        bucket = {"id": "b", "name": given.get("name"), "displayName": given.get("displayName"), "project": project}
        files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in given.get("files", [])]
        return 200, {
            "data": {
                "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
                "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}},
            }.get(name, {})
        }


class Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_POST(self):
        status, told = self.server.answer(self.path, self.rfile.read(int(self.headers.get("content-length") or 0)))
        if self.server.deaf.is_set():
            time.sleep(20)
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET = do_POST

    def log_message(self, *_):
        pass


@contextmanager
def service(knows: bool = True) -> Iterator[Service]:
    """A service whose key is the environment's."""
    server = Service(knows)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()
        yield server
        server.shutdown()
        wandb.teardown()


def test_with_a_key_a_run_goes_to_the_service(tmp_path):
    job = Job(tmp_path, "one", "train", {"seed": 7}, ["imdb"], "sweep-1")
    with service() as server, open_tracker(tracking("wandb", project="films"), job) as tracker:
        tracker.log({"imdb/dev_accuracy": 0.5}, 3)
        tracker.total({"imdb/test_accuracy": 0.75})
        tracker.end(failed=False)
        tracker.trackers.clear()
    assert not tracker.missing
    first = next(given for name, given in server.sent if name == "UpsertBucket")
    assert (first["project"], first["groupName"], first["displayName"], first["jobType"], first["tags"]) == (
        "films", "sweep-1", "one", "train", ["imdb"],
    )  # fmt: skip
    assert json.loads(first["config"])["seed"]["value"] == 7
    files: dict[str, list[str]] = {}
    for name, given in server.sent:
        for file, part in given.get("files", {}).items() if name == "file_stream" else ():
            files.setdefault(file, []).extend(part["content"])
    assert json.loads(files["wandb-history.jsonl"][0])["imdb/dev_accuracy"] == 0.5
    assert json.loads(files["wandb-summary.json"][-1])["imdb/test_accuracy"] == 0.75
    kept = json.loads((tmp_path / "wandb.json").read_text())
    assert kept == {
        "id": first["name"],
        "project": "films",
        "entity": None,
        "url": f"{server.url}/team/films/runs/{first['name']}",
    }


def test_a_service_that_goes_away_is_said_and_holds_nobody_up(tmp_path):
    with service() as server:
        with open_tracker(tracking("wandb", timeout=2), Job(tmp_path, "one", "train")) as tracker:
            server.deaf.set()
            tracker.log({"loss": 1.0}, 1)
        (told,) = tracker.missing.values()
    assert told.startswith(
        "wandb: the end not written: TimeoutError: not all was sent in 2 s. Send it with: wandb sync "
    )


def test_a_wrong_key_is_said_and_the_run_kept_offline(tmp_path):
    with service(knows=False), open_tracker(tracking("wandb"), Job(tmp_path, "one", "train")) as tracker:
        tracker.log({"loss": 1.0}, 1)
    (told,) = tracker.missing.values()
    assert "user is not logged in" in told
    assert of_type(lines_of(tmp_path), "history")[0]["item"]["loss"] == 1.0


def test_without_a_key_auto_stays_offline_and_asks_nobody(tmp_path):
    with open_tracker(tracking("wandb"), Job(tmp_path, "one", "train")) as tracker:
        tracker.log({"loss": 1.0}, 1)
    assert not tracker.missing and len(of_type(lines_of(tmp_path), "history")) == 1


def test_a_job_that_raises_is_a_failed_run(tmp_path):
    with pytest.raises(ZeroDivisionError), open_tracker(tracking("wandb"), Job(tmp_path, "one", "train")):
        raise ZeroDivisionError
    assert of_type(lines_of(tmp_path), "exit")[0]["exit_code"] == 1


def test_large_files_are_kept_by_checksum_where_files_are_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("bert_mtl.tracking.weights_and_biases.LARGE", 10)
    (tmp_path / "small").write_bytes(b"12345")
    (tmp_path / "large").write_bytes(b"1234567890")
    package = Package("bundle", "bundle", {name: tmp_path / name for name in ("small", "large")})
    with open_tracker(tracking("wandb", files=False), Job(tmp_path, "one", "export")) as tracker:
        tracker.makes(package)
    (artifact,) = of_type(lines_of(tmp_path), "artifact")
    found = {entry["path"]: entry.get("ref") for entry in artifact["manifest"]["contents"]}
    assert found == {"small": None, "large": (tmp_path / "large").as_uri()}


def test_tensorboard_reads_values_tables_and_the_configuration(tmp_path):
    job = Job(tmp_path, "one", "train", {"seed": 7}, ["imdb"])
    with open_tracker(tracking("tensorboard"), job, beside=[History(tmp_path)]) as tracker:
        tracker.log({"imdb/loss": 0.5}, 3)
        tracker.log({"imdb/loss": 0.25}, 6)
        tracker.table("imdb/dev_errors", ["text", "probability"], [["a | b\nc", 0.98765]])
    assert not tracker.missing
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    values = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors("imdb/loss")]
    assert values == [(3, 0.5), (6, 0.25)]
    (table,) = events.Tensors("imdb/dev_errors")
    assert table.tensor_proto.string_val[0].decode().splitlines()[-1] == "| a \\| b c | 0.9877 |"
    assert b"seed: 7" in events.Tensors("config")[0].tensor_proto.string_val[0]
    assert [line["imdb/loss"] for line in read_history(tmp_path)] == [0.5, 0.25]


def test_tensorboard_that_is_not_installed_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    rule = r"tracking must be one that is installed \(TensorBoard comes with the extra track: .*got tensorboard"
    with pytest.raises(ConfigError, match=rule), open_tracker(tracking("tensorboard"), Job(tmp_path, "one", "train")):
        pass


def test_a_tracker_that_cannot_start_is_left_behind(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    (tmp_path / "wandb.json").write_text("{half a")
    for kind in ("tensorboard", "wandb"):
        with open_tracker(tracking(kind), Job(tmp_path, "one", "train"), beside=[History(tmp_path)]) as tracker:
            tracker.log({"loss": 1.0}, 1)
        assert any(told.startswith(f"{kind}: ") for told in tracker.missing.values())
    assert len(read_history(tmp_path)) == 2


def test_a_line_that_the_disk_has_no_room_for_leaves_none_of_it(tmp_path):
    history = History(tmp_path)
    history.log({"loss": 0.5}, 1)
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))  # a part of the second line fits
    try:
        with pytest.raises(OSError):
            history.log({"loss": 0.25}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    history.log({"loss": 0.125}, 3)
    assert [line["step"] for line in read_history(tmp_path)] == [1, 3]


class Broken(Tracker):
    name = "broken"

    def log(self, values, step):
        raise OSError("no space left")


def test_a_tracker_that_fails_is_told_of_once_and_the_others_go_on(tmp_path, caplog):
    tracker = Careful([Broken(), History(tmp_path)])
    for step in range(3):
        tracker.log({"loss": 1.0}, step)
    assert list(tracker.missing.values()) == ["broken: values not written: OSError: no space left"]
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert [line["step"] for line in read_history(tmp_path)] == [0, 1, 2]


def test_a_history_that_is_rewound_has_no_later_steps(tmp_path):
    history = History(tmp_path)
    for step in (5, 10, 15):
        history.log({"loss": float("nan") if step == 5 else 0.5}, step)
    history.rewind(10)
    assert read_history(tmp_path) == [{"step": 5, "loss": None}, {"step": 10, "loss": 0.5}]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    History(tmp_path).log({"loss": 0.5}, 5)
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"step": 10, "lo')
    assert read_history(tmp_path) == [{"step": 5, "loss": 0.5}]


def test_names_of_values():
    assert [path_of("imdb", "imdb"), path_of("snips", "snips_intent"), path_of("imdb", "imdb@2")] == [
        "imdb", "snips/intent", "imdb/exit2",
    ]  # fmt: skip
    assert [better(name) for name in ("imdb/dev_accuracy", "imdb/dev_loss", "loss", "score", "speed/mfu")] == [
        "max", "min", "min", "max", None,
    ]  # fmt: skip
