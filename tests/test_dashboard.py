"""Dashboards: the real libraries of Weights & Biases save views at a local server, which keeps what it is sent."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bert_mtl.commands import DashboardConfig
from bert_mtl.dashboard import dashboard
from conf import entry

KEY = "0123456789" * 4


class Service(ThreadingHTTPServer):
    """What the libraries ask of wandb: whose the key is, and views by project and name, which it keeps."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.projects, self.views, self.sent = {("anna", "bert_mtl")}, {}, []
        self.refusal: str | None = None

    def answer(self, query: str, given: dict) -> dict:
        if "viewer" in query:
            return {"data": {"viewer": {"id": "1", "entity": "anna", "username": "anna", "teams": {"edges": []}}}}
        if "allViews" in query:
            place = given["entityName"], given["projectName"]
            found = [self.views[key] for key in self.views if key == (*place, given["viewName"])]
            views = {"allViews": {"edges": [{"node": view} for view in found]}}
            return {"data": {"project": views if place in self.projects else None}}
        assert "upsertView" in query, query
        if self.refusal:
            return {"errors": [{"message": self.refusal}]}
        self.sent.append(given)
        view = {"id": given.get("id") or f"id{len(self.views)}", "name": given["name"]}
        kept = {"displayName": given["displayName"], "spec": given["spec"]}
        self.views[given["entityName"], given["projectName"], given["name"]] = view | kept
        return {"data": {"upsertView": {"view": view, "inserted": "id" not in given}}}


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = json.loads(body) if self.path == "/graphql" else {}  # else it is the client's own telemetry
        answer = json.dumps(self.server.answer(asked["query"], asked.get("variables") or {}) if asked else {}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def account(monkeypatch, tmp_path) -> Iterator[pytest.MonkeyPatch]:
    """Without a key or settings of the user's own; wandb reads the environment anew."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


@pytest.fixture
def service(account) -> Iterator[Service]:
    with Service() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        account.setenv("WANDB_API_KEY", KEY)
        account.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def run(*overrides: str) -> dict[str, str]:
    return dashboard(entry.compose("dashboard", overrides, DashboardConfig))


def told(capsys, *overrides: str) -> str:
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        entry.main("dashboard", DashboardConfig, dashboard, argv=overrides)
    assert ended.value.code == 1
    return capsys.readouterr().err.removesuffix("\n")


def sections(spec: str) -> dict[str, dict[str, object]]:
    """Section -> title (or kind) of a panel -> the names of its values."""
    found: dict[str, dict[str, object]] = {}
    for section in json.loads(spec)["section"]["panelBankConfig"]["sections"]:
        panels = found[section["name"]] = {}
        for panel in section["panels"]:
            config = panel["config"]
            names = config.get("metricRegex") or config.get("metrics") or [config.get("xAxis"), config.get("yAxis")]
            panels[config.get("chartTitle", panel["viewType"])] = names
    return found


def test_views_show_every_head_by_the_names_of_its_values_and_are_updated_in_place(service, capsys):
    urls = run("task=[imdb,snips]")
    base = f"http://127.0.0.1:{service.server_port}/anna/bert_mtl?nw="
    assert {title: url.removesuffix(url[-11:]) for title, url in urls.items()} == dict.fromkeys(
        ["Training", "Single against multi-task", "Serving"], base
    )
    assert [f"nw-{url[-11:]}-v" for url in urls.values()] == [sent["name"] for sent in service.sent]
    assert capsys.readouterr().out == "".join(f"{title}: {url}\n" for title, url in urls.items())
    training, comparison, serving = (sent["spec"] for sent in service.sent)
    assert sections(training) == {
        "All tasks": {"Score": ["score"], "Loss": ["loss"], "Learning rate": ["optimizer/learning_rate"]},
        "Task imdb": {
            "imdb: loss": ["imdb/loss"],
            "imdb: dev accuracy": ["imdb/dev_accuracy"],
            "imdb: dev accuracy of exits": r"^imdb/exit\d+/dev_accuracy$",
        },
        "Task snips": {
            "snips/intent: loss": ["snips/intent/loss"],
            "snips/intent: dev accuracy": ["snips/intent/dev_accuracy"],
            "snips/intent: dev accuracy of exits": r"^snips/intent/exit\d+/dev_accuracy$",
            "snips/slots: loss": ["snips/slots/loss"],
            "snips/slots: dev f1": ["snips/slots/dev_f1"],
        },
        "Mixture": {
            "Shares": ["mixing/imdb", "mixing/snips"],
            "Weights of losses": ["weight/imdb", "weight/snips/intent", "weight/snips/slots"],
        },
        "Speed": {
            "Tokens per second": ["speed/tokens_per_second"],
            "MFU": ["speed/mfu"],
            "Packing: fill": ["packing/fill"],
        },
        "Machine": {
            "GPU: busy, %": [f"system/gpu.{number}.gpu" for number in range(8)],
            "GPU: memory, %": [f"system/gpu.{number}.memoryAllocated" for number in range(8)],
            "CPU, %": ["system/cpu"],
            "Memory, %": ["system/memory_percent"],
        },
    }
    assert sections(comparison) == {
        "Best dev scores": {
            "imdb: best dev accuracy": ["imdb/dev_accuracy.max"],
            "snips/intent: best dev accuracy": ["snips/intent/dev_accuracy.max"],
            "snips/slots: best dev f1": ["snips/slots/dev_f1.max"],
        },
        "Speed and score": {
            "Best score by tokens per second": ["summary:speed/tokens_per_second", "summary:score.max"]
        },
        "What differs": {"Run Comparer": [None, None]},
    }
    assert sections(serving) == {
        "Stability": {"Population stability index": "^drift/.+/psi$"},
        "Drift": {"Weave": [None, None]},
        "Sampled predictions": {"Weave": [None, None]},
    }
    for spec, job, groups in (
        (training, "train", [{"section": "run", "name": "group"}]),
        (comparison, "train", [{"section": "config", "name": "task_names.value"}]),
        (serving, "drift", []),
    ):
        (runs,) = json.loads(spec)["section"]["runSets"]
        (only,) = runs["filters"]["filters"]
        assert (only["key"]["name"], only["op"], only["value"]) == ("jobType", "=", job)
        assert runs["grouping"] == groups
    tables = [panel["config"] for section in json.loads(serving)["section"]["panelBankConfig"]["sections"][1:]
              for panel in section["panels"]]  # fmt: skip
    assert [table["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"] for table in tables] == [
        "drift",
        "predictions",
    ]

    assert run("task=[trec]") == urls
    assert [sent.get("id") for sent in service.sent] == [None, None, None, "id0", "id1", "id2"]
    assert sections(service.sent[3]["spec"])["Mixture"]["Shares"] == ["mixing/trec"]
    assert len(service.views) == 3


def test_another_project_or_team_has_views_of_its_own(service):
    service.projects |= {("team", "bert_mtl"), ("anna", "other")}
    urls = [*run().values(), *run("entity=team").values(), *run("project=other").values()]
    assert len(set(urls)) == len({sent["name"] for sent in service.sent}) == 9
    assert {(sent["entityName"], sent["projectName"]) for sent in service.sent} == service.projects


def test_what_the_service_refuses_is_one_line(service, capsys):
    service.refusal = "permission denied"
    line = told(capsys)
    assert line.startswith("the view 'Training' was not saved: ") and "permission denied" in line and "\n" not in line


def test_a_project_without_runs_is_told_of(service, capsys):
    assert told(capsys, "project=bert_mlt") == (
        "project must be one of anna with runs; got bert_mlt. Train one with tracking=wandb, or send what was kept "
        "offline with `wandb sync`."
    )
    assert service.sent == []


def test_a_key_is_needed(account, capsys):
    line = "wandb must have a key; got nothing. Log in with `wandb login`, or set WANDB_API_KEY."
    assert told(capsys) == line


def test_a_service_that_does_not_answer_is_one_line(account, capsys):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        account.setenv("WANDB_API_KEY", KEY)
        account.setenv("WANDB_BASE_URL", address)
        line = told(capsys)
    assert line.startswith("wandb did not answer, or refused the key: ") and address in line and "\n" not in line
    assert "giving up after 2 attempt(s)" in line and "connection refused" in line


def test_the_extra_is_named_where_its_package_is_missing(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "bert_mtl.views", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb_workspaces"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert told(capsys).startswith('a dashboard needs the extra track (pip install "bert_mtl[track]"): ')
