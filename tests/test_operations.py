"""What operators rely on: keys, ids, room, drains, versions, lost workers, and that readiness tells the truth."""

import asyncio
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from local_server import LIMITS, local_service, running
from test_bundle import HEADS, edit_manifest, write_bundle
from test_serving import Gate, dummy, server_process

from conf.entry import compose
from conf.errors import ConfigError
from serving.bundle import BundleError, load_bundle
from serving.config import HttpConfig, ServeConfig
from serving.errors import NotReady, UnknownVersion
from serving.keys import Keys, read_keys
from serving.metrics import Metrics
from serving.models import Models
from serving.server import AddressError, bind, check_tls, deployed
from serving.steps import WorkerSettings
from serving.workers import Worker

KEY = "a-key-of-20-letters-"


def post(address: str, **more: object) -> httpx.Response:
    return httpx.post(f"{address}/classify", json={"texts": ["good film"]} | more, timeout=20)


# --- keys


def test_only_who_has_a_key_is_answered_but_probes_and_the_page_are(tmp_path):
    with running(write_bundle(tmp_path), keys=[KEY, "another-of-20-letters"]) as address:
        for header in ({}, {"authorization": f"Basic {KEY}"}, {"authorization": f"Bearer {KEY[:-1]}"}):
            response = httpx.post(f"{address}/classify", json={"texts": ["good"]}, headers=header)
            assert (response.status_code, response.json()["error"]["type"]) == (401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        with_key = {"authorization": f"bearer {KEY}"}
        assert httpx.post(f"{address}/classify", json={"texts": ["good"]}, headers=with_key).status_code == 200
        open_paths = ("/livez", "/readyz", "/")
        assert [httpx.get(address + path).status_code for path in open_paths] == [200, 200, 200]
        assert [httpx.get(address + path).status_code for path in ("/stats", "/metrics", "/docs")] == [401, 401, 401]


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# of the dashboard\n{KEY}\n\n")
    monkeypatch.setenv("BERT_MTL_KEYS", "another-of-20-letters, ")
    keys = read_keys(file)
    assert [keys.admit(f"Bearer {key}") for key in (KEY, "another-of-20-letters", "# of the dashboard", "")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not keys.admit(None)
    monkeypatch.delenv("BERT_MTL_KEYS")
    assert not read_keys(None) and read_keys(None).admit(None)
    wrong = {"# none\n": "hold at least one key", "short\n": "at least 16 characters; got 1 shorter ones"}
    for content, message in wrong.items():
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_keys(file)
    with pytest.raises(ConfigError, match="http.keys must be a file"):
        read_keys(tmp_path / "nowhere")


def test_a_key_that_is_no_ascii_is_wrong_and_nothing_else():
    assert not Keys([KEY]).admit("Bearer \udcff\u00e4")


# --- requests


def test_every_answer_has_the_id_of_its_request(tmp_path):
    with running(write_bundle(tmp_path)) as address:
        given = httpx.get(f"{address}/livez", headers={"x-request-id": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        drawn = [httpx.get(f"{address}/nothing").headers["x-request-id"] for _ in range(2)]
        assert len(set(drawn)) == 2 and all(len(each) == 16 for each in drawn)


def test_a_full_queue_answers_429_and_says_when_to_come_again(tmp_path):
    bundle, gate = load_bundle(write_bundle(tmp_path)), Gate()
    with running(tmp_path, dummy(bundle, gate), queue=1) as address:
        first = threading.Thread(target=post, args=(address,))
        first.start()
        assert gate.entered.wait(10)
        refused = post(address)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        message = "the server is busy with 1 texts; ask again in 1 s"
        assert refused.json() == {"error": {"type": "busy", "message": message}}
        gate.open.set()
        first.join()
        assert post(address).status_code == 200
        assert 'bert_mtl_requests_total{kind="any",outcome="refused",version="1"} 1.0' in metrics_of(address)


def test_an_answer_that_is_late_is_504(tmp_path):
    bundle, gate = load_bundle(write_bundle(tmp_path)), Gate()
    limits = LIMITS.model_copy(update={"timeout": 0.05})
    with running(tmp_path, dummy(bundle, gate), limits=limits) as address:
        late = post(address)
        gate.open.set()
    assert (late.status_code, late.json()["error"]["type"]) == (504, "late")
    assert late.json()["error"]["message"].startswith("no answer within 0.0")


def test_rows_of_a_client_that_goes_leave_the_queue(tmp_path):
    bundle, gate = load_bundle(write_bundle(tmp_path)), Gate()
    with running(tmp_path, dummy(bundle, gate)) as address:
        first = threading.Thread(target=post, args=(address,))
        first.start()
        assert gate.entered.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/classify", json={"texts": ["bad"] * 3}, timeout=0.2)
        until(lambda: stats_of(address)["now"]["queue"]["texts"] == 1)
        gate.open.set()
        first.join()
        text = metrics_of(address)
    assert 'bert_mtl_requests_total{kind="classify",outcome="cancelled",version="1"} 1.0' in text
    assert 'bert_mtl_batch_rows_total{stage="0",version="1"} 1.0' in text


def test_heads_and_versions_can_be_chosen(tmp_path):
    heads = HEADS | {"mood": HEADS["imdb"]}
    with running(write_bundle(tmp_path, heads=heads)) as address:
        assert list(post(address, heads=["mood"]).json()["results"][0]) == ["mood"]
        assert post(address, version="1").json()["model"] == {"name": "tiny", "version": "1"}
        wrong = post(address, heads=["mud"])
        assert (wrong.status_code, wrong.json()["error"]["message"]) == (
            422, "heads must be of the model; got mud. Options: imdb, mood",
        )  # fmt: skip
        wrong = post(address, version="2")
        assert (wrong.status_code, wrong.json()["error"]["message"]) == (
            404, "version must be one that is served; got 2. Options: 1",
        )  # fmt: skip


def test_vectors_and_tokens_of_texts(tmp_path):
    with running(edit_manifest(write_bundle(tmp_path), encoder={"dim": 8, "layers": 2})) as address:
        # The dummy's states: [CLS] 2, good 6, film 8, [SEP] 3, each plus its place and 2 for the layer, by 1,000.
        found = httpx.post(f"{address}/encode", json={"texts": ["good film", "a a a a a a a"]}).json()
        assert found["vectors"][0] == pytest.approx([(4.75 + place + 2) / 1000 for place in range(8)])
        assert (found["truncated"], found["model"]) == ([False, True], {"name": "tiny", "version": "1"})
        one = {"texts": [["good", "films"]], "pooling": "none", "layers": [0]}
        states = httpx.post(f"{address}/encode", json=one).json()["vectors"][0]
        assert [state[0] for state in states] == pytest.approx([0.002, 0.006, 0.001, 0.003])  # films is not known
        # 40 texts of 8 tokens of 8 numbers of 4 bytes; the limit of the body here is 10,000
        many = httpx.post(f"{address}/encode", json={"texts": ["a a a a a a a"] * 40, "pooling": "none"})
        message = "vectors of all tokens must have at most 10000 bytes; these would have 10240"
        assert (many.status_code, many.json()["error"]["message"]) == (413, message)
        tokens = httpx.post(f"{address}/tokenize", json={"texts": ["Good films"]}).json()["tokens"]
        assert tokens == [
            {"ids": [2, 6, 8, 9, 3], "tokens": ["[CLS]", "good", "film", "##s", "[SEP]"], "truncated": False}
        ]
        theirs = {"id": 7, "texts": ["good film", "bad"], "is_tokenized": False}
        told = httpx.post(f"{address}/encode", json=theirs).json()
        assert (told["id"], told["status"], len(told["result"])) == (7, 200, 2)
        assert told["result"][0] == pytest.approx(found["vectors"][0])
        mixed = httpx.post(f"{address}/encode", json=theirs | {"texts": ["good ||| film", "bad"]})
        assert mixed.json()["error"]["message"] == "texts must all be pairs (a ||| b) or all single texts"
        wrong = httpx.post(f"{address}/encode", json={"texts": ["good"], "layers": [3]})
        assert wrong.json()["error"]["message"] == "layers must be between -3 and 2; got 3."


# --- what is told


def stats_of(address: str) -> dict:
    return httpx.get(f"{address}/stats").json()


def metrics_of(address: str) -> str:
    return httpx.get(f"{address}/metrics").text


def until(true: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def test_what_was_done_is_told_by_the_second(tmp_path):
    with running(write_bundle(tmp_path)) as address:
        for _ in range(3):
            post(address)
        post(address, texts=[""])
        told = stats_of(address)
        until(lambda: sum(second["requests"] for second in stats_of(address)["history"]) == 3)
        told = stats_of(address)
    assert len(told["history"]) == 120 and told["model"] == "tiny"
    assert sum(second["texts"] for second in told["history"]) == 3
    assert told["now"]["batch"] == {"fill": 1.0, "rows": 1.0}
    assert 0 < told["now"]["latency_ms"]["p50"] <= told["now"]["latency_ms"]["p99"]
    (version,) = told["versions"]
    assert version["heads"] == {"imdb": {"kind": "classification", "reads": "text", "task": "tiny"}}
    assert (version["state"], version["engine"], version["requests"]) == ("AVAILABLE", "dummy", 3)


# --- versions


class Story:
    """Models around the dummy in a folder, asked within one event loop."""

    def __init__(self, folder: Path, count: int = 1) -> None:
        metrics = Metrics()
        self.models = Models(folder, count, lambda b, v: local_service(b, version=v, metrics=metrics), metrics)

    def states(self) -> dict[str, str]:
        return {each.version: each.state for each in self.models.status()}

    async def label(self, version: str | None = None) -> tuple[str, str]:
        service = self.models.service(version)
        answers = await service.classify(["good"])
        return service.version, answers.results[0]["imdb"]["label"]


def labelled(folder: Path, label: str) -> Path:
    """A bundle that answers "good" with the label."""
    return write_bundle(folder, heads={"imdb": HEADS["imdb"] | {"labels": [label, "not"]}})


def test_a_new_version_takes_over_and_the_former_one_ends_after_its_last_request(tmp_path):
    async def story() -> None:
        told = Story(tmp_path)
        await told.models.start()
        assert await told.label() == ("9", "old")
        service = told.models.service()
        open_request = asyncio.create_task(service.classify(["bad"] * 3))
        await asyncio.sleep(0)
        labelled(tmp_path / "10", "new")
        await told.models.reload()
        assert await told.label() == ("10", "new")
        assert len((await open_request).results) == 3
        while told.states() != {"10": "AVAILABLE", "9": "END"}:
            await asyncio.sleep(0.01)
        with pytest.raises(UnknownVersion, match="got 9. Options: 10"):
            told.models.service("9")
        await told.models.close()
        with pytest.raises(NotReady):
            told.models.service()

    labelled(tmp_path / "9", "old")
    asyncio.run(asyncio.wait_for(story(), 20))


def test_a_version_that_fails_leaves_the_former_one_in_place_until_it_is_whole(tmp_path):
    async def story() -> None:
        told = Story(tmp_path)
        await told.models.start()
        broken = labelled(tmp_path / "2", "new")
        vocabulary = (broken / "tokenizer/vocab.txt").read_bytes()
        (broken / "tokenizer/vocab.txt").write_bytes(vocabulary[:5])  # it is still being copied
        await told.models.reload()
        assert await told.label() == ("1", "old")
        status = {each.version: each for each in told.models.status()}
        assert (status["1"].state, status["2"].state) == ("AVAILABLE", "END")
        assert "tokenizer/vocab.txt has sha256" in status["2"].error
        (broken / "tokenizer/vocab.txt").write_bytes(vocabulary)
        await told.models.reload()
        assert await told.label() == ("2", "new")
        await told.models.close()

    labelled(tmp_path / "1", "old")
    asyncio.run(asyncio.wait_for(story(), 20))


def test_versions_side_by_side_and_back_to_a_former_one(tmp_path):
    async def story() -> None:
        told = Story(tmp_path, count=2)
        await told.models.start()
        assert told.states() == {"3": "AVAILABLE", "2": "AVAILABLE"}
        assert [await told.label(version) for version in (None, "2", "3")] == [("3", "c"), ("2", "b"), ("3", "c")]
        shutil.copytree(tmp_path / "2", tmp_path / "4")  # with the times of its files
        await told.models.reload()
        assert await told.label() == ("4", "b")
        shutil.rmtree(tmp_path / "3")
        shutil.rmtree(tmp_path / "4")
        await told.models.reload()
        assert await told.label() == ("2", "b")
        assert (await told.label("1"))[1] == "a"
        shutil.rmtree(tmp_path / "1")
        shutil.rmtree(tmp_path / "2")
        await told.models.reload()  # nothing is there any more: what answers goes on
        assert await told.label() == ("2", "b")
        await told.models.close()

    for version, label in (("1", "a"), ("2", "b"), ("3", "c")):
        labelled(tmp_path / version, label)
    asyncio.run(asyncio.wait_for(story(), 20))


def test_a_bundle_that_is_replaced_in_its_place_is_served_and_one_of_another_name_is_not(tmp_path):
    async def story() -> None:
        told = Story(tmp_path / "bundle")
        await told.models.start()
        labelled(tmp_path / "bundle", "new")
        await told.models.reload()
        assert await told.label() == ("1", "new")
        edit_manifest(tmp_path / "bundle", name="other")
        await told.models.reload()
        assert await told.label() == ("1", "new")
        told_errors = "".join(each.error or "" for each in told.models.status())
        assert "must hold the model tiny; got other" in told_errors
        await told.models.close()

    labelled(tmp_path / "bundle", "old")
    asyncio.run(asyncio.wait_for(story(), 20))


def test_without_a_version_that_answers_nothing_starts(tmp_path):
    with pytest.raises(BundleError, match="bundle must hold a manifest.json, or folders that do"):
        asyncio.run(Story(tmp_path).models.start())


def test_gauges_of_a_version_that_has_ended_are_gone(tmp_path):
    async def story() -> None:
        told = Story(tmp_path)
        await told.models.start()
        told.models.observe()
        labelled(tmp_path / "2", "new")
        await told.models.reload()
        while told.states()["1"] != "END":
            await asyncio.sleep(0.01)
        told.models.observe()
        ready = re.findall(r"workers_ready{.*", told.models.metrics.exposition().decode())
        assert ready == ['workers_ready{version="2"} 1.0']
        await told.models.close()

    labelled(tmp_path / "1", "old")
    asyncio.run(asyncio.wait_for(story(), 20))


def test_a_version_that_the_configuration_does_not_suit_does_not_end_the_watch(tmp_path):
    config = compose("serve", [f"bundle={tmp_path}", "engine=dummy", "max_length=8"], ServeConfig)

    async def story() -> None:
        metrics = Metrics()
        models = Models(tmp_path, 1, lambda b, v: deployed(b, v, config, metrics, None), metrics)
        await models.start()
        watch = asyncio.create_task(models.watch(0.02))
        shorter = labelled(tmp_path / "2", "new")
        manifest = json.loads((shorter / "manifest.json").read_text())
        manifest["tokenizer"]["max_length"] = 6
        (shorter / "manifest.json").write_text(json.dumps(manifest))
        labelled(tmp_path / "0\u00b2", "odd")  # a digit that is no number
        while "max_length must be at most 6" not in "".join(each.error or "" for each in models.status()):
            await asyncio.sleep(0.02)
        assert not watch.done() and models.service().version == "1"
        watch.cancel()
        await models.close()

    labelled(tmp_path / "1", "old")
    asyncio.run(asyncio.wait_for(story(), 20))


# --- processes


def test_a_worker_is_replaced_though_no_process_was_to_be_had_at_first(tmp_path, monkeypatch):
    start, failed = asyncio.create_subprocess_exec, []

    async def scarce(*arguments: str, **more: object) -> asyncio.subprocess.Process:
        if not failed:
            failed.append(OSError(errno.EMFILE, "Too many open files"))
            raise failed[0]
        return await start(*arguments, **more)

    async def story() -> None:
        worker = Worker(WorkerSettings(load_bundle(write_bundle(tmp_path)), "dummy", 1, 1), 10.0)
        await worker.start()
        monkeypatch.setattr(asyncio, "create_subprocess_exec", scarce)
        os.kill(worker.pid, signal.SIGKILL)
        while worker.is_ready:
            await asyncio.sleep(0.01)
        await worker.ready()
        assert failed and worker.restarts == 2
        await worker.close()

    asyncio.run(asyncio.wait_for(story(), 30))


def test_endless_heads_and_requests_that_never_come_end_their_connections(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.http.wire.PATIENCE", 0.5)
    with running(write_bundle(tmp_path)) as address:
        target = ("127.0.0.1", int(address.rpartition(":")[2]))
        with socket.create_connection(target) as endless:
            endless.settimeout(10)
            with pytest.raises(OSError):
                for number in range(1000):
                    endless.sendall(b"GET / HTTP/1.1\r\n" if not number else b"x-a: " + b"y" * 10_000 + b"\r\n")
        for begun in (b"", b"POST /cla", b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"):
            with socket.create_connection(target) as slow:
                slow.settimeout(10)
                slow.sendall(begun)
                assert slow.recv(100) == b""
        assert post(address).status_code == 200


@pytest.mark.parametrize("host", ["a" * 70, "nowhere.invalid"])
def test_a_host_that_is_none_is_told_by_its_key(host):
    with pytest.raises(AddressError, match="http.host must be an address of this machine"):
        bind(HttpConfig(host=host, port=0, drain=1, keys=None, tls_certificate=None, tls_key=None))


def test_files_of_tls_that_are_none_are_told_by_their_key(tmp_path):
    (tmp_path / "c.pem").write_text("no certificate")
    files = {"tls_certificate": tmp_path / "c.pem", "tls_key": tmp_path / "c.pem"}
    with pytest.raises(ConfigError, match="http.tls_certificate must be the PEM file"):
        check_tls(HttpConfig(host="", port=0, drain=1, keys=None, **files))


def test_killed_workers_are_replaced_and_no_request_is_lost(tmp_path):
    with server_process(f"bundle={write_bundle(tmp_path)}", "engine=dummy", "workers=2") as (process, line):
        address = line.split()[0]
        workers = [each["pid"] for each in stats_of(address)["versions"][0]["workers"]]
        statuses: list[int] = []

        def ask() -> None:
            with httpx.Client(timeout=20) as client:
                for _ in range(60):
                    statuses.append(client.post(f"{address}/classify", json={"texts": ["good"] * 8}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for pid in workers:
            time.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert statuses == [200] * 180
        until(lambda: all(each["state"] == "ready" for each in stats_of(address)["versions"][0]["workers"]))
        now = stats_of(address)["versions"][0]["workers"]
        assert [each["restarts"] for each in now] == [1, 1] and not {each["pid"] for each in now} & set(workers)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        for pid in (each["pid"] for each in now):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_a_killed_server_takes_its_workers_along_and_a_new_version_comes_with_sighup(tmp_path):
    labelled(tmp_path / "1", "old")
    with server_process(f"bundle={tmp_path}", "engine=dummy", "reload=null") as (process, line):
        address = line.split()[0]
        labelled(tmp_path / "2", "new")
        assert post(address, texts=["good"]).json()["results"][0]["imdb"]["label"] == "old"
        process.send_signal(signal.SIGHUP)
        until(lambda: post(address, texts=["good"]).json()["results"][0]["imdb"]["label"] == "new")
        (worker,) = [each["pid"] for each in stats_of(address)["versions"][0]["workers"]]
        process.kill()
        until(lambda: not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes())


def test_tls(tmp_path):
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, "-days", "1", *subject], check=True, capture_output=True)
    tls = [f"http.tls_certificate={certificate}", f"http.tls_key={key}"]
    with server_process(f"bundle={write_bundle(tmp_path / 'b')}", "engine=dummy", *tls) as (_, line):
        address = line.split()[0]
        assert address.startswith("https://127.0.0.1:")
        assert httpx.get(f"{address}/readyz", verify=str(certificate)).json() == {"ready": True}
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as plain:
            plain.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" not in plain.recv(100)


# --- deployment


def test_manifests_for_kubernetes_are_valid_and_name_what_there_is():
    validate = pytest.importorskip("kubernetes_validate").validate
    folder, kinds = Path(__file__).parents[1] / "deploy/kubernetes", []
    for file in sorted(folder.glob("*.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            kinds.append(manifest["kind"])
            if manifest["kind"] != "InferenceService":  # which is not Kubernetes' own
                validate(manifest, "1.31", strict=True)
    assert set(kinds) == {
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "InferenceService",
    }  # fmt: skip
    text = Metrics().exposition().decode() + "".join(file.read_text() for file in folder.glob("*.yaml"))
    assert text.count("bert_mtl_queue_texts") > 1
    for file in [*folder.glob("*.yaml"), folder.parent / "compose.yaml"]:
        for override in re.findall(r'"([a-z_.]+=[^"]*)"', file.read_text()):
            if not override.startswith("-"):
                compose("serve", ["bundle=b", override] if "bundle=" not in override else [override], ServeConfig)


def test_one_process_answers_http_zeromq_and_grpc_and_drains_them_all(tmp_path):
    pytest.importorskip("tensorflow_serving", reason="needs the extra grpc")
    import grpc
    from bert_serving.client import BertClient
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    bundle = write_bundle(tmp_path)
    with server_process(f"bundle={bundle}", "engine=dummy", "zmq.port=0", "grpc.port=0", allow=True) as (process, line):
        ports = re.search(r"port=(\d+), port_out=(\d+)", line)
        rest = [process.stdout.readline() for _ in range(3)]
        address, target = rest[1].split()[0], rest[0].split()[1]
        with BertClient(port=int(ports[1]), port_out=int(ports[2]), timeout=10_000, check_length=False) as client:
            vectors = client.encode(["good film"])
            assert vectors.tolist() == [pytest.approx([(4.75 + place + 2) / 1000 for place in range(8)])]
        with grpc.insecure_channel(target) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert post(address).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
