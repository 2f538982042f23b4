"""The server from its batches to its process, with real uvicorn and the real client, mostly on the dummy engine."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from local_server import classified, local_service, running
from test_bundle import HEADS, head, saved_model, sentencepiece_bundle, write_bundle  # noqa: F401

from conf.entry import compose
from serving.bundle import Bundle, load_bundle
from serving.client import Client, ClientError
from serving.config import HttpConfig, ServeConfig
from serving.engines import Engine, open_engine
from serving.server import AddressError, bind, greeting, serve
from serving.service import TextError

ROOT = Path(__file__).resolve().parent.parent
TWO_HEADS = {
    "imdb": head("classification", [2], labels=["neg", "pos"]),
    "topic": head("classification", [3], labels=["art", "sport", "world"]),
}


def http() -> HttpConfig:
    return HttpConfig(host="127.0.0.1", port=0, drain=5, keys=None, tls_certificate=None, tls_key=None)


def dummy(bundle: Bundle, around: Callable) -> Engine:
    """The dummy engine; `around(run, arrays)` answers in its place."""
    engine = open_engine("dummy", bundle)
    return replace(engine, runs=[functools.partial(around, engine.runs[0])])


class Shapes(list):
    """Notes the shape of each batch."""

    def __call__(self, run, arrays):
        self.append(arrays["token_ids"].shape)
        return run(arrays)


class Gate:
    """Lets nothing through before it is opened."""

    def __init__(self):
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, run, arrays):
        self.entered.set()
        assert self.open.wait(10)
        return run(arrays)


class Fickle:
    """A switch between working, raising and answering NaN."""

    mode = "works"

    def __call__(self, run, arrays):
        if self.mode == "raises":
            raise RuntimeError("secret detail")
        outputs = run(arrays)
        return {head: values * np.nan for head, values in outputs.items()} if self.mode == "nan" else outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("two_heads"), heads=TWO_HEADS)


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    with running(folder) as address:
        yield address


# --- batches


def test_a_large_request_is_split_and_answered_in_its_own_order(folder):
    shapes, bundle = Shapes(), load_bundle(folder)
    texts = ["a a a a a", "good", "a a a a", "bad", "very good film"]
    split = classified(local_service(bundle, [dummy(bundle, shapes)], tokens=12), texts)
    assert shapes == [(1, 7), (2, 3), (1, 6), (1, 5)]  # padding is too dear beside the last ones
    assert split == [classified(local_service(bundle), [text])[0] for text in texts]


# --- requests and answers


def test_every_head_answers_every_text(address, folder):
    sent = {"texts": ["good film", "a a a a a a a"]}
    answer = httpx.post(f"{address}/classify", json=sent).json()
    # Token ids: [CLS] 2, good 6, film 8, [SEP] 3: the dummy scores (19 + label) % labels + 1.
    assert answer["results"][0] == {
        "imdb": {"label": "neg", "probabilities": pytest.approx({"neg": 2 / 3, "pos": 1 / 3})},
        "topic": {"label": "sport", "probabilities": pytest.approx({"art": 2 / 6, "sport": 3 / 6, "world": 1 / 6})},
    }
    assert answer["truncated"] == [False, True]
    assert answer["model"] == {"name": "tiny", "version": "1"}


def test_all_heads_answer_pairs_and_heads_of_texts_answer_texts(tmp_path):
    heads = TWO_HEADS | {
        "follows": head("classification", [2], labels=["no", "yes"], reads="pair"),
        "alike": head("similarity", [3], reads="apart"),
    }
    folder = write_bundle(tmp_path, heads=heads)
    shapes = Shapes()
    with (
        running(folder, dummy(load_bundle(folder), shapes), tokens=12) as address,
        Client(address) as client,
    ):
        single, (pair, other) = client.classify(["good"])[0], client.classify(["good", "a"], ["bad", "film"])
        assert set(single) == {"imdb", "topic", "alike"} and set(pair) == set(other) == {*single, "follows"}
        assert (pair["imdb"], pair["topic"]) == (single["imdb"], single["topic"])  # they read the first text
        # [CLS] 2 good 6 [SEP] 3 and [CLS] 2 bad 7 [SEP] 3: their sums leave 2 and 0 when divided by 3
        first, second = np.array([3, 1, 2]) / 6, np.array([1, 2, 3]) / 6
        assert single["alike"]["vector"] == pytest.approx(first)
        assert pair["alike"] == {"similarity": pytest.approx(first @ second)}
        assert pair["follows"]["probabilities"] == pytest.approx({"no": 2 / 3, "yes": 1 / 3})  # 21 is odd
        assert shapes == [(1, 3), (4, 3), (2, 5), (2, 3)]
        with pytest.raises(ClientError, match="422: texts_b.1 must not be empty"):
            client.classify(["good", "a"], ["bad", ""])
        with pytest.raises(TypeError):
            client.classify(["good"], "bad")
    only = write_bundle(tmp_path / "pairs", heads={"follows": heads["follows"]})
    bundle = load_bundle(only)
    with pytest.raises(TextError, match="^texts_b must be given: the model reads pairs$"):
        classified(local_service(bundle), ["good"])
    with bind(http()) as listener:
        example = json.loads(re.search("-d '(.*)'", greeting(local_service(bundle), listener))[1])
    assert len(classified(local_service(bundle), *example.values())) == 2


def test_one_row_serves_all_heads_unless_words_have_other_ids(tmp_path):
    heads = {
        "imdb": HEADS["imdb"],
        "names": head("tagging", [3], tags=["O", "B-a", "I-a"], level="token", reads="words"),
        "words": head("mlm", [2], level="mask", reads="masks"),
    }
    wordpiece = load_bundle(write_bundle(tmp_path / "wordpiece", heads=heads))
    pieces = sentencepiece_bundle(tmp_path / "sentencepiece", heads=heads, max_length=64)
    for bundle, rows in ((wordpiece, 3), (pieces, 5)):
        shapes = Shapes()
        found = classified(local_service(bundle, [dummy(bundle, shapes)]), ["a good film!", "good [MASK]"])
        assert sum(shape[0] for shape in shapes) == rows
        assert [set(result) for result in found] == [{"imdb", "names", "words"}] * 2
        assert [len(result["words"]["masks"]) for result in found] == [0, 1]


def test_the_saved_model_answers_over_http(saved_model):  # noqa: F811
    engine = open_engine("auto", load_bundle(saved_model))
    with running(saved_model, engine) as address, Client(address) as client:
        answers = client.classify(["good film", "a good film!"])
    assert [answer["imdb"]["label"] for answer in answers] == ["neg", "neg"]
    assert [answer["imdb"]["probabilities"]["pos"] for answer in answers] == pytest.approx([0.19, 0.35], abs=1e-6)


@pytest.mark.parametrize(
    "content, status, message",
    [
        ({"texts": ["good", " \n"]}, 422, "texts.1 must not be empty"),
        ({"texts": ["good", "good", "x" * 101]}, 422, "texts.2 must have at most 100 characters; got 101"),
        ({"texts": []}, 422, "texts must hold at least one text; got none"),
        ({"texts": ["a"] * 51}, 413, "texts must be at most 50 in a request; got 51"),
        ({"texts": ["a", 3]}, 422, "texts.1: Input should be a valid string; got 3"),
        ({"texts": ["a"], "texts_b": ["b"]}, 422, "texts_b must be left out: the model reads single texts"),
        ({"texts": ["a"], "texts_b": ["b", "c"]}, 422, "texts_b must hold as many texts as texts, 1; got 2"),
        ({"texts": ["a"], "texts_b": [0]}, 422, "texts_b.0: Input should be a valid string; got 0"),
        ({"texts": "good"}, 422, "texts: Input should be a valid list; got 'good'"),
        (
            {"text": "good"},
            422,
            "the body: Only the keys texts, texts_b, heads and version are known; got {'text': 'good'}",
        ),
        ({}, 422, "texts: Field required"),
        ([], 422, "the body: Input should be a valid dictionary or object to extract fields from; got []"),
    ],
)
def test_a_wrong_request_is_told_what_and_where(address, content, status, message):
    response = httpx.post(f"{address}/classify", json=content)
    kind = {413: "too_large", 422: "invalid_request"}[status]
    assert (response.status_code, response.json()) == (status, {"error": {"type": kind, "message": message}})


@pytest.mark.parametrize(
    "body, status", [(b'{"texts": [', 422), (b"", 422), (b'{"\xff', 400), (b'{"texts": ["\\ud800"]}', 422),
                     (b"[" * 9_000, 400), (b'{"texts": [1e999]}', 422)]
)  # fmt: skip
def test_a_body_that_is_no_json_is_answered_and_harms_nobody(address, body, status):
    response = httpx.post(f"{address}/classify", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, list(response.json()["error"])) == (status, ["type", "message"])
    assert httpx.get(f"{address}/readyz").json() == {"ready": True}


def test_a_body_over_the_limit_is_refused_declared_or_not(address):
    big = json.dumps({"texts": ["a" * 10_000]}).encode()
    chunks = iter([big[:6000], big[6000:]])
    for content in (big, chunks):
        response = httpx.post(f"{address}/classify", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert response.json() == {"error": {"type": "too_large", "message": "the body must be at most 10000 bytes"}}


def test_unknown_paths_and_methods_have_the_same_form(address):
    assert httpx.get(f"{address}/nothing").json() == {
        "error": {"type": "not_found", "message": "GET /nothing: Not Found"}
    }
    response = httpx.get(f"{address}/classify")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_the_event_loop_answers_while_the_model_computes(folder):
    gate = Gate()
    with running(folder, dummy(load_bundle(folder), gate)) as address, Client(address) as client:
        answers = []
        thread = threading.Thread(target=lambda: answers.extend(client.classify(["good"])))
        thread.start()
        assert gate.entered.wait(10)
        try:
            assert httpx.get(f"{address}/livez", timeout=5).json() == {"live": True}
            assert answers == []
        finally:
            gate.open.set()
            thread.join()
    assert answers[0]["topic"]["label"] == "art"


def test_a_failing_model_gives_500_and_readiness_tells_the_truth(folder):
    fickle = Fickle()
    with running(folder, dummy(load_bundle(folder), fickle)) as address:
        for fickle.mode in ("raises", "nan"):
            response = httpx.post(f"{address}/classify", json={"texts": ["good"]})
            error = {"type": "internal", "message": "the server failed; its log says why"}
            assert (response.status_code, response.json()) == (500, {"error": error})
            assert httpx.get(f"{address}/readyz").status_code == 503
            assert httpx.get(f"{address}/livez").status_code == 200
        fickle.mode = "works"
        assert httpx.get(f"{address}/readyz").json() == {"ready": True}
        assert httpx.post(f"{address}/classify", json={"texts": ["good"]}).status_code == 200


# --- the client


def test_the_client_warns_of_cut_texts_and_refuses_a_bare_text(address):
    with Client(address + "/") as client:
        with pytest.warns(UserWarning, match="1 of 2 texts are longer than the model reads"):
            assert len(client.classify(["good", "a " * 20])) == 2
        with pytest.raises(TypeError):
            client.classify("good")


def test_client_errors_say_the_address_and_the_reason(address, folder):
    with pytest.raises(ClientError, match=rf"^{address}/classify answered 422: texts.0 must not be empty$"):
        Client(address).classify([""])
    with bind(http()) as silent:
        closed = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClientError, match=rf"^{closed}/classify cannot be reached: .*refused"):
            Client(closed).classify(["good"])
        silent.listen()
        with pytest.raises(ClientError, match=rf"^{closed}/classify did not answer within 0.2 s$"):
            Client(closed, timeout=0.2).classify(["good"])


# --- the process


def config(bundle: Path, **http: object) -> ServeConfig:
    return compose(
        "serve", [f"bundle={bundle!s}", *(f"http.{key}={value}" for key, value in http.items())], ServeConfig
    )


def test_a_port_in_use_is_said_before_the_bundle_is_read(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            AddressError, match=rf"^http.port must be free, and open to this user; got {port}. Address already in use"
        ):
            serve(config(tmp_path / "no bundle here", port=port))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_said_by_key(tmp_path, host):
    with pytest.raises(AddressError, match=rf"^http.host must be an address .*; got '?{host}'?\. "):
        serve(config(tmp_path, host=host))


WITHOUT_TRAINING = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "bert_mtl", "data_prep"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
"""


@contextmanager
def server_process(*overrides: str, allow: bool = False) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server process and the line it prints; unless `allow`, neither it nor its workers can import TensorFlow or
    training code."""
    command = [sys.executable, "-m", "serving.server", "http.port=0", "workers=1", *overrides]
    with tempfile.TemporaryDirectory() as blocker:
        Path(blocker, "sitecustomize.py").write_text("" if allow else WITHOUT_TRAINING)
        path = os.pathsep.join((blocker, str(ROOT)))
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()
            process.communicate()


def test_a_server_without_tensorflow_answers_and_its_own_example_works(folder):
    with server_process(f"bundle={folder}", "engine=dummy") as (process, line):
        address, curl = re.fullmatch(r"(http://127\.0\.0\.1:\d+) answers from tiny 1; try: (curl .*)\n", line).groups()
        with Client(address) as client:
            assert client.classify(["good film"])[0]["topic"]["label"] == "sport"
        body = re.search(r"-d '(.*)'", curl)[1]
        headers = {"content-type": "application/json"}
        assert len(httpx.post(f"{address}/classify", content=body, headers=headers).json()["results"]) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        logged = [json.loads(line) for line in process.stderr]
    assert [each["message"] for each in logged if each["logger"] == "serving.access"] == ["POST /classify"] * 2
    assert all(len(each["request_id"]) == 16 and each["status"] == 200 for each in logged if "status" in each)


def test_sigterm_lets_an_open_request_end_and_exits_with_0(folder):
    body = json.dumps({"texts": ["good film"]}).encode()
    head = (
        f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with server_process(f"bundle={folder}", "engine=dummy") as (process, line):
        port = int(re.search(r":(\d+) ", line)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head.encode() + body[:5])
            assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:  # until nobody new is let in
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                except ConnectionRefusedError:
                    break
                time.sleep(0.02)
            connection.sendall(body[5:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK") and b'"label":"neg"' in answer
        assert process.wait(10) == 0


def test_a_damaged_bundle_ends_the_process_with_one_message(tmp_path):
    with server_process(f"bundle={tmp_path}/nowhere", "engine=dummy") as (process, line):
        assert process.wait(20) == 1
        assert line == ""
        assert re.fullmatch(r"bundle must be a folder that exists; got \S+nowhere\.\n", process.stderr.read())


def test_the_savedmodel_engine_without_tensorflow_says_what_to_install(tmp_path):
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model/saved_model.pb").write_bytes(b"x")
    stages = [{"path": "saved_model", "inputs": ["token_ids"], "depth": 2}]
    files = {"savedmodel": {"precision": "fp32", "stages": stages}}
    with server_process(f"bundle={write_bundle(tmp_path, engines=files)}") as (process, _):
        assert process.wait(20) == 1
        assert process.stderr.read().startswith("engine savedmodel needs TensorFlow (pip install tensorflow-text): ")
