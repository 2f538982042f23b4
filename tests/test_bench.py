"""The load and its figures, on functions that answer as told and on a real server."""

import asyncio
import csv
import gzip
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from conf import entry
from conf.entry import ConfigError
from serving import bench, bench_texts
from serving.bench_config import BenchConfig
from serving.load import UNANSWERED, Sample, closed_loop, figures, open_loop

TEXTS = entry.CONF_DIR / "texts"


class Server:
    """Answers after `wait` seconds: every `refuses`-th request with 429, others with `status`."""

    def __init__(self, address: str):
        self.address = address
        self.reset()

    def reset(self) -> "Server":
        self.wait, self.refuses, self.status, self.ready_in, self.asked, self.keys = 0.0, 0, 200, 0, [], set()
        return self

    async def classify(self, request: Request) -> JSONResponse:
        self.asked.append(await request.json())
        self.keys.add(request.headers.get("authorization"))
        refused = self.refuses and len(self.asked) % self.refuses == 0
        await asyncio.sleep(self.wait)
        return JSONResponse({"error": {"message": "no such key"}}, 429 if refused else self.status)

    async def ready(self, request: Request) -> JSONResponse:
        self.ready_in -= 1
        return JSONResponse({}, 503 if self.ready_in >= 0 else 200)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")
        routes = [
            Route("/readyz", told.ready),
            Route("/classify", told.classify, methods=["POST"]),
            Route("/encode", told.classify, methods=["POST"]),
        ]
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), lifespan="off", log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield told
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def server(running: Server) -> Server:
    return running.reset()


def config(*overrides: str) -> BenchConfig:
    return entry.compose("bench", overrides, BenchConfig, config_dir=TEXTS)


def run(server: Server, *overrides: str) -> list[bench.Step]:
    quick = ("duration=0.4", "warmup=0.1", "wait=1", f"url={server.address}")
    return bench.bench(config(*quick, *overrides))


# --- figures


def test_figures_of_a_time_are_those_of_the_requests_due_in_it():
    late = [Sample(due=1.0 + n / 100, sent=1.0 + n / 100 + 0.002, done=1.0 + n / 50, status=200) for n in range(101)]
    others = [
        Sample(0.5, 0.5, 0.9, 200),  # of the warm-up
        Sample(0.9, 0.9, 1.5, 200),  # answered in the time, due before it
        Sample(1.5, 1.5, 1.501, 429),
        Sample(1.5, 1.5, 1.501, 429),
        Sample(1.6, 1.6, 1.602, 503),
        Sample(1.7, 1.7, 1.702, "ClientOSError"),
    ]
    found = figures([*others, *late], begin=1.0, seconds=1.0)
    # Number 100 of `late` is due at the end of the time; half of the others are answered after it.
    assert found.requests == 100 + 4
    assert found.requests_per_second == 50 + 1
    assert found.latency_ms == pytest.approx({"p50": 495, "p90": 891, "p95": 940.5, "p99": 980.1, "max": 990})
    assert (found.refused, found.failed, found.unanswered) == (2, 1, 1)
    assert found.late_ms == pytest.approx(2 * 100 / 104)
    assert found.statuses == {200: 100, 429: 2, 503: 1, "ClientOSError": 1}


def test_a_timeout_counts_with_the_time_that_was_waited():
    found = figures([Sample(0, 0, 0.1, 200), Sample(0, 0, 30.0, UNANSWERED)], begin=0, seconds=1)
    assert (found.latency_ms["max"], found.unanswered, found.requests_per_second) == (30_000, 1, 1)


def test_a_time_without_answers_has_no_latencies():
    found = figures([Sample(0, 0, 0.1, 429)], begin=0, seconds=1)
    assert set(found.latency_ms.values()) == {None} and found.requests_per_second == 0


# --- loops


def test_a_closed_loop_keeps_as_many_requests_open_as_it_has_clients():
    now, most = 0, 0

    async def send(number: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return 200

    samples = asyncio.run(closed_loop(send, clients=5, seconds=0.2))
    assert most == 5 and 50 <= len(samples) <= 105


def test_an_open_loop_sends_at_its_rate_whether_or_not_it_is_answered():
    async def never(number: int) -> int:
        await asyncio.sleep(0.5)
        return 200

    samples = asyncio.run(open_loop(never, rate=400, seconds=0.5, dice=random.Random(1)))
    gaps = [b.due - a.due for a, b in zip(samples, samples[1:], strict=False)]
    assert 160 <= len(samples) <= 240  # 200, four deviations of Poisson's around
    assert max(gaps) > 3 / 400 > min(gaps) >= 0  # random times, not a beat


def test_an_open_loop_counts_the_wait_behind_a_stall_and_a_closed_loop_hides_it():
    """The server, one request at a time, stalls once for 0.3 s."""

    def stalling():
        turn = asyncio.Lock()

        async def send(number: int) -> int:
            async with turn:
                await asyncio.sleep(0.3 if number == 10 else 0)
            return 200

        return send

    async def waits(loop: str) -> list[float]:
        send = stalling()
        if loop == "open":
            samples = await open_loop(send, rate=200, seconds=0.6, dice=random.Random(1))
        else:
            samples = await closed_loop(send, clients=1, seconds=0.6)
        return [sample.done - sample.due for sample in samples]

    opened, closed = asyncio.run(waits("open")), asyncio.run(waits("closed"))
    assert sum(wait > 0.1 for wait in opened) >= 15  # of about 40 that were due in its first 0.2 s
    assert sum(wait > 0.1 for wait in closed) <= 3  # one, but for the machine's own stalls


# --- texts


def test_texts_come_from_lines_and_from_jsonl_packed_or_not(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo \n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "three"}\n', encoding="utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "four"}\n')
    read = [sorted(bench_texts.texts_of(str(tmp_path / name), None, 1)) for name in ("a.txt", "a.jsonl", "a.jsonl.gz")]
    assert read == [["one", "two "], ["three"], ["four"]]


@pytest.mark.parametrize("content", ["", "{}\n", '{"text": 3}\n', '{"text": " "}\n', "[1]\n", "{\n"])
def test_a_file_without_usable_texts_is_told(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(bench_texts.TextsError, match=r"input .*a\.jsonl"):
        bench_texts.texts_of(str(tmp_path / "a.jsonl"), None, 1)
    with pytest.raises(bench_texts.TextsError, match="input must be an existing file; got .*b.txt"):
        bench_texts.texts_of(str(tmp_path / "b.txt"), None, 1)


def test_texts_of_so_many_words_are_drawn_from_the_inputs(tmp_path):
    (tmp_path / "a.txt").write_text("one two\nthree\n")
    texts = bench_texts.texts_of(str(tmp_path / "a.txt"), words=7, seed=1)
    assert {len(text.split()) for text in texts} == {7} and set(" ".join(texts).split()) == {"one", "two", "three"}


# --- the command


def test_a_closed_loop_reports_what_the_server_did(server, capsys, tmp_path):
    server.wait, server.refuses = 0.02, 4
    (step,) = run(server, "clients=4", "texts_per_request=3", "key=secret", f"csv={tmp_path}/a.csv")
    assert 50 <= step.figures.requests_per_second <= 150  # at most 4 clients at 50 a second, 3 of 4 answered
    assert 20 <= step.figures.latency_ms["p50"] < 60
    assert step.texts_per_second == 3 * step.figures.requests_per_second
    assert step.figures.refused == pytest.approx(step.figures.requests / 4, abs=2)
    assert {len(content["texts"]) for content in server.asked} == {3} and server.keys == {"Bearer secret"}
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["clients", "req/s", "texts/s", "p50"] and line.split()[0] == "4"
    (row,) = csv.DictReader((tmp_path / "a.csv").open())
    assert (row["load"], row["clients"], row["rate"], row["refused"]) == ("closed", "4", "", str(step.figures.refused))
    assert 0 < float(row["cpu_ms"]) < 10


def test_a_ramp_ends_where_throughput_stops_growing_and_appends_its_steps(server, capsys, tmp_path):
    server.wait = 0.02
    (tmp_path / "a.csv").touch()
    steps = run(server, "clients=[1,2,2,4]", f"csv={tmp_path}/a.csv", "growth=0.3")
    assert [step.at for step in steps] == [1, 2, 2]
    assert capsys.readouterr().out.splitlines()[-1].startswith("most: ")
    run(server, "rate=[50,100]", "growth=0", f"csv={tmp_path}/a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [(row["clients"], row["rate"]) for row in rows] == [
        ("1", ""), ("2", ""), ("2", ""), ("", "50.0"), ("", "100.0"),
    ]  # fmt: skip


def test_encode_is_loaded_with_its_choices(server):
    run(server, "endpoint=encode", "pooling=mean", "layers=[-1,2]", "clients=1", "words=4")
    assert {(content["pooling"], tuple(content["layers"])) for content in server.asked} == {("mean", (-1, 2))}


def test_a_server_that_starts_is_waited_for(server):
    server.ready_in = 3
    start = time.monotonic()
    run(server, "clients=1")
    assert 0.3 + 0.5 <= time.monotonic() - start < 2


def test_what_prevents_the_load_is_told_before_it(server, tmp_path):
    server.status = 401
    with pytest.raises(bench.BenchError, match=r"/classify answered 401: .*no such key"):
        run(server)
    assert len(server.asked) == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"url=http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(bench.BenchError, match=r"/readyz: .*, for 0.2 s"):
        run(server, closed, "wait=0.2")


def test_packages_that_are_missing_are_named_with_their_extra(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Exception, match=r'^plot needs matplotlib: pip install "bert_mtl\[bench\]"$'):
        run(server, "plot=a.svg")
    monkeypatch.setattr(bench, "aiohttp", None)
    with pytest.raises(bench.BenchError, match=r'needs aiohttp: pip install "bert_mtl\[bench\]"$'):
        run(server)
    assert server.asked == []


def test_a_plot_is_written(server, tmp_path):
    pytest.importorskip("matplotlib")
    run(server, "clients=[1,2]", "growth=0", f"plot={tmp_path}/a.svg")
    assert (tmp_path / "a.svg").read_bytes()[:5] == b"<?xml"


def test_wrong_keys_are_told_together():
    wrong = ("url=host", "clients=0", "input=a.csv", "plot=a.pdf", "pooling=mean")
    with pytest.raises(ConfigError) as caught:
        config(*wrong)
    assert {problem.key for problem in caught.value.problems} == {"url", "clients", "input", "plot", "pooling"}
