"""Alerts and dashboard of `deploy/`: each expression is PromQL about metrics and labels that the server has."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import promql_parser
import pytest
import yaml
from local_server import running
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggModifierType, AggregateExpr, BinaryExpr, MatchOp, VectorSelector
from test_bundle import write_bundle
from test_operations import until
from test_samples import config as sampling
from test_serving import dummy

from serving.bundle import load_bundle

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/bert_mtl.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())
SCRAPE = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"][0]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"$__rate_interval": "1m", "$job": SCRAPE["job_name"], "$instance": ".+", "$version": ".+"}
TARGET = {"job": {SCRAPE["job_name"]}, "instance": {"bert_mtl:8000"}}
"""Labels that Prometheus adds to all that it reads of a server."""
Known = dict[str, dict[str, set[str]]]


class Engine:
    """Fails of the word bad (7), and waits of the word film (8) until it is let go."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, run, arrays):
        if 7 in arrays["token_ids"]:
            raise RuntimeError("no")
        if 8 in arrays["token_ids"]:
            self.entered.set()
            assert self.go.wait(20)
        return run(arrays)


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Known:
    """Series of a server at work -> labels -> values, with those of the target and of the recording rules."""
    folder, engine = tmp_path_factory.mktemp("watching"), Engine()
    bundle = load_bundle(write_bundle(folder / "bundle"))
    (folder / "file").touch()
    samples = sampling(folder / "file" / "samples")  # they are lost at first
    with running(bundle.folder, dummy(bundle, engine), samples=samples, queue=1) as address:

        def post(text: str, seconds: float = 20) -> int:
            return httpx.post(f"{address}/classify", json={"texts": [text]}, timeout=seconds).status_code

        def told(series: str) -> bool:
            return series in httpx.get(f"{address}/metrics").text

        slow = threading.Thread(target=post, args=("film",))
        slow.start()
        assert engine.entered.wait(20)
        assert post("good") == 429
        engine.go.set()
        slow.join()
        until(lambda: told('bert_mtl_samples_total{outcome="lost"'))
        (folder / "file").unlink()  # from now on they can be written
        engine.go.clear()
        with pytest.raises(httpx.ReadTimeout):
            post("film", 0.2)
        until(lambda: told('outcome="cancelled"'))
        engine.go.set()
        assert [post(text) for text in ("good", "bad", "")] == [200, 500, 422]
        until(lambda: told('bert_mtl_samples_total{outcome="written"'))
        text = httpx.get(f"{address}/metrics").text
    found: Known = {"up": dict(TARGET)}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {name: set(values) for name, values in TARGET.items()})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    for rule in rules("record"):
        found[rule["record"]] = {"job": TARGET["job"]}
    return found


def rules(kind: str) -> list[dict]:
    return [rule for group in RULES["groups"] for rule in group["rules"] if kind in rule]


def resolved(expression: str) -> str:
    """The expression with a value for each of Grafana's variables."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def nodes(expression: str) -> Iterator[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(resolved(expression)), found.append)
    return iter(found)


def faults(expression: str, known: Known) -> Iterator[str]:
    """What an expression names that the server does not have."""
    labels: set[str] = set()
    for node in nodes(expression):
        if isinstance(node, VectorSelector):
            if node.name not in known:
                yield f"no metric {node.name}"
                continue
            labels |= known[node.name].keys()
            for matcher in node.matchers.matchers:
                values = known[node.name].get(matcher.name)
                if values is None:
                    yield f"no label {matcher.name} of {node.name}"
                elif matcher.op in (MatchOp.Equal, MatchOp.Re):
                    wanted = matcher.value.split("|") if matcher.op == MatchOp.Re else [matcher.value]
                    yield from (f"no {matcher.name}={each}" for each in wanted if each not in values | {".+"})
    for node in nodes(expression):
        modifiers = []
        if isinstance(node, AggregateExpr) and node.modifier:
            modifiers.append(node.modifier.labels)
        if isinstance(node, BinaryExpr) and node.modifier and node.modifier.matching:
            modifiers.append(node.modifier.matching.labels)
        yield from (f"no label {each} to group by" for each in {*sum(modifiers, [])} - labels)


def test_what_nobody_tells_would_be_found(known):
    wrong = {
        'rate(bert_mtl_request_total{outcome="ok"}[5m])': ["no metric bert_mtl_request_total"],
        'bert_mtl_requests_total{outcomes="ok"}': ["no label outcomes of bert_mtl_requests_total"],
        'bert_mtl_requests_total{outcome=~"ok|okay"}': ["no outcome=okay"],
        "sum by (stage) (bert_mtl_requests_total)": ["no label stage to group by"],
    }
    assert {expression: list(faults(expression, known)) for expression in wrong} == wrong


@pytest.mark.parametrize("rule", rules("expr"), ids=lambda rule: rule.get("alert") or rule["record"])
def test_alerts_and_recorded_ratios_are_about_what_the_server_tells(rule, known):
    assert list(faults(rule["expr"], known)) == []


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_are_about_what_the_server_tells(panel, known):
    for target in panel["targets"]:
        assert list(faults(target["expr"], known)) == []
        outer = promql_parser.parse(resolved(target["expr"]))
        told = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        while isinstance(outer, BinaryExpr):
            outer = outer.lhs
        kept = [
            set(node.modifier.labels)
            for node in nodes(target["expr"])
            if isinstance(node, AggregateExpr) and node.modifier and node.modifier.type == AggModifierType.By
        ]
        assert told <= (set.intersection(*kept) if kept else TARGET.keys()), "the legend names a label that is gone"


def test_each_own_metric_is_shown(known):
    named = {node.name for panel in PANELS for target in panel["targets"] for node in nodes(target["expr"])
             if isinstance(node, VectorSelector)}  # fmt: skip
    own = {name for name in known if name.startswith("bert_mtl_")}
    assert own - named == set()


def test_variables_ask_for_what_the_server_tells(known):
    queries = {
        each["name"]: each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"
    }
    assert {f"${name}" for name in queries} | {"$__rate_interval"} == VARIABLES.keys()
    for query in queries.values():
        expression, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
        assert list(faults(expression, known)) == []
        assert label in known[next(nodes(expression)).name]


def test_panels_lie_side_by_side_and_are_told_apart():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Traffic", "Latency", "Batches and exits", "Queue and workers", "Memory and CPU", "Versions side by side",
        "Samples",
    ]  # fmt: skip


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_has_all_that_grafana_asks_for(panel):
    assert panel["type"] in ("timeseries", "stat", "heatmap") and panel["description"]
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources)
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    if panel["type"] == "heatmap":
        assert panel["targets"][0]["format"] == "heatmap" and panel["options"]["calculate"] is False
    else:
        units = ("reqps", "short", "percentunit", "s", "bytes")
        assert panel["fieldConfig"]["defaults"]["unit"] in units


def test_alerts_say_what_to_do_and_how_urgent_it_is():
    alerts = rules("alert")
    assert len({alert["alert"] for alert in alerts}) == len(alerts) == 8
    for alert in alerts:
        assert alert.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"].keys() == {"summary", "description"}
        assert alert["alert"] != "BertMtlDown" or f'job="{SCRAPE["job_name"]}"' in alert["expr"]
        if "for" in alert:
            promql_parser.parse_duration(alert["for"])


def test_prometheus_grafana_and_drift_are_wired_to_the_server():
    compose, server = (yaml.safe_load((DEPLOY / name).read_text()) for name in ("compose.watch.yaml", "compose.yaml"))
    services = compose["services"]
    (target,) = SCRAPE["static_configs"][0]["targets"]
    assert target.split(":")[0] in server["services"] and target.endswith(":8000")
    key = services["prometheus"]["configs"][0]
    assert key["source"] in compose["configs"] and key["target"] == SCRAPE["authorization"]["credentials_file"]
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090" and source["type"] == "prometheus"
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/bert_mtl.yaml").read_text())["providers"][0]
    mounts = [volume.split(":") for volume in services["grafana"]["volumes"]]
    assert ["./grafana/dashboards", provider["options"]["path"], "ro"] in mounts
    for mount in (volume for name in ("prometheus", "grafana") for volume in services[name]["volumes"]):
        source_path = mount.split(":")[0]
        assert (DEPLOY / source_path).is_dir() if source_path[0] == "." else source_path in compose["volumes"]
    assert "samples.dir=/drift/samples" in services["bert_mtl"]["command"]
    assert "samples=/drift/samples" in services["drift"]["command"]
