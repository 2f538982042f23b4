"""bert-as-service's wire with its own client (bert-serving-client 1.10.0) and raw sockets on 127.0.0.1."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvloop
import zmq
from bert_serving.client import BertClient, ConcurrentBertClient
from local_server import local_service
from test_bundle import write_bundle

from conf.errors import validate
from serving.bert_as_service import frames
from serving.bert_as_service.answers import TextVectors
from serving.bert_as_service.bridge import ZmqBridge
from serving.bert_as_service.config import ZmqConfig
from serving.bert_as_service.outbox import Held, Reply
from serving.bert_as_service.sockets import ZmqAddressError
from serving.bert_as_service.status import Statistic
from serving.bundle import load_bundle
from serving.config import EncodeConfig
from serving.errors import EngineError, QueueFull, Refused, TextError
from serving.service import Answers, Encoded

SETTINGS: dict[str, Any] = {
    "host": "127.0.0.1", "port": 0, "port_out": 0, "pooling": None, "head": None, "fixed_length": False,
    "terminate": False, "requests": 64, "piece": 64, "frame": 1 << 20, "reply": 1 << 26,
    "held": {"replies": 1000, "bytes": 1 << 26, "seconds": 10.0},
}  # fmt: skip
ENCODE = EncodeConfig(pooling="mean", layers=[-2])
HEADS = {
    "imdb": SimpleNamespace(kind="classification"),
    "stars": SimpleNamespace(kind="regression"),
    "price": SimpleNamespace(kind="regression"),
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "film", "bad", "sea", "##side"]


class Queue:
    """A batcher's room."""

    def __init__(self) -> None:
        self.texts, self.limit, self.most = 0, 256, 0

    def check_room(self) -> None:
        if self.texts >= self.limit:
            raise QueueFull(self.limit, 1)


class Standin:
    """Answers as `serving.service.Service`: a vector counts the tokens (`[number, first id, second text's tokens]`)."""

    def __init__(self, version: str = "1", delay: float = 0.0) -> None:
        settings = SimpleNamespace(max_length=16, lowercase=True)
        self.manifest = SimpleNamespace(name="tiny", version=version, heads=HEADS, tokenizer=settings)
        self.workers, self.batcher, self.delay = [None, None], Queue(), delay
        self.asked: list[int] = []
        self.none = False
        self.cancelled = 0

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def ids(self, text: str | list[str]) -> list[int]:
        words = text.split() if isinstance(text, str) else text
        return [WORDS.index(word) if word in WORDS else 1 for word in words]

    @contextmanager
    def _permit(self, texts: list) -> Iterator[None]:
        self.batcher.check_room()
        self.batcher.texts += len(texts)
        self.batcher.most = max(self.batcher.most, self.batcher.texts)
        self.asked.append(len(texts))
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.batcher.texts -= len(texts)

    async def encode(self, texts: list, texts_b: list | None = None) -> Encoded:
        with self._permit(texts):
            await asyncio.sleep(self.delay)
            ids, vectors = [], []
            for index, text in enumerate(texts):
                if not text or text == " ":
                    raise TextError(f"texts.{index} must not be empty")
                if text == "crash":
                    raise EngineError("secret path")
                first, second = self.ids(text), self.ids(texts_b[index]) if texts_b else []
                ids.append([2, *first, 3, *second, *([3] if second else [])])
                vector = np.array([len(first), first[0], len(second)], np.float32)
                vectors.append(np.tile(vector, (len(ids[-1]), 1)) if self.none else vector)
            return Encoded(vectors, ids, [False] * len(texts))

    async def classify(self, texts: list, texts_b: list | None = None, *, heads: list[str]) -> Answers:
        with self._permit(texts):
            answers: dict[str, Any] = {
                "imdb": {"label": "pos", "probabilities": {"neg": 0.25, "pos": 0.75}},
                "stars": {"value": 4.5},
                "price": {"value": 9.0},
            }
            return Answers([{heads[0]: answers[heads[0]]} for _ in texts], [False] * len(texts))

    def tokens(self, ids: list[int]) -> list[str]:
        return [WORDS[each] for each in ids]


class Models:
    """`serving.models.Models` with one version at a time."""

    def __init__(self, service: Any) -> None:
        self.newest = service

    def service(self) -> Any:
        return self.newest


class Running:
    """A bridge in a thread of its own."""

    def __init__(self, models: Models, config: ZmqConfig, encode: EncodeConfig) -> None:
        self.bridge = ZmqBridge(models, config, encode.pooling, encode.layers)
        self.models, self.error = models, None
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._bound.wait()

    def _serve(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            self.ports = self.bridge.bind()
            service = self.models.newest
            await service.start()
            self.task = asyncio.create_task(self.bridge.run())
            self._bound.set()
            try:
                await self.task
            finally:
                await service.close()

        try:
            uvloop.run(serve())
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.join()

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()

    def client(self, **more: Any) -> BertClient:
        more = {"timeout": 5000} | more
        return BertClient("127.0.0.1", *self.ports, **more)


@contextmanager
def serving(service: Any = None, encode: EncodeConfig = ENCODE, **changes: Any) -> Iterator[Running]:
    config = validate(SETTINGS | changes, ZmqConfig)
    running = Running(Models(service or Standin()), config, encode)
    try:
        yield running
    finally:
        if running._thread.is_alive():
            running.loop.call_soon_threadsafe(running.task.cancel)
        running.join()
        assert running.error is None


def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def raw(running: Running, identity: bytes = b"raw", subscribe: bool = True) -> Iterator[tuple[Callable, Callable]]:
    """`send(frames)` and `receive(seconds)`, which returns None where nothing comes."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.SUB) as sub:
        for each in (push, sub):
            each.linger = 0
        push.connect(f"tcp://127.0.0.1:{running.ports[0]}")
        if subscribe:
            sub.subscribe(identity)
        sub.connect(f"tcp://127.0.0.1:{running.ports[1]}")

        def receive(seconds: float = 5.0) -> list[bytes] | None:
            return sub.recv_multipart() if sub.poll(seconds * 1000) else None

        receive.socket = sub
        yield push.send_multipart, receive


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


# The client's calls


def test_the_client_encodes_texts_in_order(server):
    with server.client() as client:
        found = client.encode(["good film", "a bad a", "film"])
        assert found.dtype == np.float32
        assert found.tolist() == [[2, 5, 0], [3, 4, 0], [1, 6, 0]]


def test_a_list_is_returned_where_the_client_wants_one(server):
    with server.client(output_fmt="list") as client:
        assert client.encode(["good film"]) == [[2.0, 5.0, 0.0]]


def test_tokens_are_read_as_they_are_and_shown(server):
    with server.client() as client:
        found, tokens = client.encode([["good", "sea", "##side"], ["xyz"]], is_tokenized=True, show_tokens=True)
        assert found.tolist() == [[3, 5, 0], [1, 1, 0]]
        assert tokens == [["[CLS]", "good", "sea", "##side", "[SEP]"], ["[CLS]", "[UNK]", "[SEP]"]]


def test_pairs_and_single_texts_stand_side_by_side_in_a_request(server):
    with server.client() as client:
        found, tokens = client.encode(["good ||| bad film", "film", "a ||| good ||| sea"], show_tokens=True)
        assert found.tolist() == [[1, 5, 2], [1, 6, 0], [3, 4, 1]]
        assert tokens[0] == ["[CLS]", "good", "[SEP]", "bad", "film", "[SEP]"]
        assert client.encode([["good", "|||", "bad", "film"]], is_tokenized=True).tolist() == [[1, 5, 2]]


def test_answers_of_requests_that_are_not_waited_for_are_fetched_later(server):
    with server.client() as client:
        for count in (3, 1, 2):
            client.encode(["good " * count], blocking=False)
        assert [each[0][0] for each in client.fetch_all()] == [3, 1, 2]
        client.encode(["good"], blocking=False)
        client.encode(["good film"], blocking=False)
        assert client.fetch_all(concat=True).shape == (2, 3)
        client.encode(["bad"], blocking=False)
        assert [each.embedding.tolist() for each in client.fetch()] == [[[1, 7, 0]]]


def test_encode_async_streams_batches(server):
    batches = (["good " * count] * 4 for count in range(1, 16))
    with server.client() as client:
        found = {each.id: each.embedding for each in client.encode_async(batches, max_num_batch=15, delay=0.01)}
        assert sorted(each[0][0] for each in found.values()) == [*range(1, 16)]


def test_the_client_reads_configuration_and_status(server):
    with server.client(show_server_config=True) as client:
        config = client.server_config
        told = {key: config[key] for key in ("server_version", "max_seq_len", "pooling_strategy", "pooling_layer")}
        assert told == {"server_version": "1.10.0", "max_seq_len": 16, "pooling_strategy": 2, "pooling_layer": [-2]}
        assert (config["port"], config["port_out"]) == server.ports
        assert config["client"] == client.identity.decode()
        before = client.server_status["statistic"]
        client.encode(["good", "bad"])
        after = client.server_status["statistic"]
        changes = {key: after[key] - before[key] for key in ("num_data_request", "num_total_seq", "num_sys_request")}
        assert changes == {"num_data_request": 1, "num_total_seq": 2, "num_sys_request": 1}
        assert client.status["num_request"] == 5 and client.status["num_pending_request"] == 0


def test_a_long_text_makes_the_client_warn(server):
    with server.client() as client, pytest.warns(UserWarning, match="max_seq_len=16"):
        client.encode(["good " * 17])


def test_many_threads_share_a_concurrent_client(server):
    address = {"ip": "127.0.0.1", "port": server.ports[0], "port_out": server.ports[1], "timeout": 5000}
    client = ConcurrentBertClient(max_concurrency=8, **address)
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda count: client.encode(texts=["good " * (count % 9 + 1)])[0][0], range(200))
        assert list(found) == [count % 9 + 1 for count in range(200)]
    assert client.server_config["server_version"] == "1.10.0"
    client.close()


def test_a_client_whose_time_is_up_raises_and_goes_on():
    with serving(Standin(delay=0.3)) as server, server.client(timeout=100) as client:
        with pytest.raises(TimeoutError, match='"timeout"=100 ms'):
            client.encode(["good"])
        client.timeout = 5000
        assert client.encode(["a good film"]).tolist() == [[3, 4, 0]]


def test_large_requests_go_to_the_model_piece_by_piece():
    service = Standin()
    with serving(service, piece=100) as server, server.client() as client:
        found = client.encode([f"{'good ' * (index % 15 + 1)}" for index in range(1050)])
        assert found[:, 0].tolist() == [index % 15 + 1 for index in range(1050)]
        assert service.asked == [100] * 10 + [50]
        client._check_input_lst_str = lambda texts: None
        with pytest.raises((TypeError, ValueError), match="of the texts 100 to 149, texts.30 must not be empty"):
            client.encode(["good"] * 130 + [""] + ["good"] * 19)


def test_a_full_queue_makes_clients_wait():
    service = Standin(delay=0.01)
    service.batcher.limit = 8
    with serving(service, piece=4) as server, server.client() as client:
        for _ in range(30):
            client.encode(["good"] * 4, blocking=False)
        assert client.fetch_all(concat=True).shape == (120, 3)
    assert service.batcher.most == 8


def test_an_answer_is_of_one_version_though_another_comes_meanwhile():
    old, new = Standin("1", delay=0.05), Standin("2")
    with serving(old, piece=1) as server, server.client() as client:
        client.encode(["good", "good", "good"], blocking=False)
        eventually(lambda: old.asked)
        server.models.newest = new
        assert client.fetch_all()[0].shape == (3, 3)
    assert (old.asked, new.asked) == ([1], [1, 1, 1])


# The server's own service, on the dummy engine


def test_the_service_answers_texts_tokens_and_pairs(tmp_path):
    service = local_service(load_bundle(write_bundle(tmp_path)))
    with serving(service, piece=2) as server, server.client() as client:
        with pytest.warns(UserWarning, match="max_seq_len=8"):
            found, read = client.encode(["good film", "bad ||| very good film", "a " * 30], show_tokens=True)
        assert found.dtype == np.float32 and len(found) == 3
        assert [" ".join(tokens) for tokens in read] == [
            "[CLS] good film [SEP]", "[CLS] bad [SEP] very good film [SEP]", "[CLS] a a a a a a [SEP]",
        ]  # fmt: skip
        texts = [["good", "film", "|||", "bad"], ["a", "##s"], ["zzz"], ["good", "film"]]
        tokenised, read = client.encode(texts, is_tokenized=True, show_tokens=True)
        assert [" ".join(tokens) for tokens in read[:3]] == [
            "[CLS] good film [SEP] bad [SEP]", "[CLS] a ##s [SEP]", "[CLS] [UNK] [SEP]",
        ]  # fmt: skip
        assert tokenised[3].tolist() == found[0].tolist()
        with pytest.raises(TypeError, match="texts.0 must have at most 100 characters; got 101"):
            client.encode(["x" * 101])


@pytest.mark.parametrize(
    ("pooling", "number", "shape"),
    [
        ("none", 0, (2, 5, 16)), ("max", 1, (2, 16)), ("mean", 2, (2, 16)), ("mean_max", 3, (2, 32)),
        ("cls", 4, (2, 16)), ("sep", 5, (2, 16)), ("cls_pooled", 6, (2, 8)),
    ],
)  # fmt: skip
def test_every_pooling_and_several_layers_reach_the_client(tmp_path, pooling, number, shape):
    service = local_service(load_bundle(write_bundle(tmp_path)))
    service._encode = EncodeConfig(pooling=pooling, layers=[-2, 2])
    texts = ["very good film", "bad"]
    with serving(service, encode=service._encode) as server, server.client() as client:
        config = client.server_config
        assert (config["pooling_strategy"], config["pooling_layer"]) == (number, [-2, 1])
        found = client.encode(texts)
        assert found.shape == shape and found.any()
        vectors = asyncio.run_coroutine_threadsafe(service.encode(texts), server.loop).result(5).vectors
        for row, vector in zip(found, vectors, strict=True):
            assert row[: len(vector)].tolist() == vector.tolist() and not row[len(vector) :].any()


def test_the_service_answers_the_probabilities_of_a_head(tmp_path):
    service = local_service(load_bundle(write_bundle(tmp_path)))
    with serving(service, pooling="classification") as server, server.client() as client:
        found = client.encode(["good film", "bad"])
        assert found.shape == (2, 2) and np.allclose(found.sum(axis=1), 1)
        with pytest.raises(TypeError, match="texts_b must be left out: the model reads single texts"):
            client.encode(["good ||| bad"])


# Pooling


def test_vectors_of_tokens_are_padded_to_the_longest():
    service = Standin()
    service.none = True
    with serving(service) as server, server.client() as client:
        found = client.encode(["good", "good film a"])
        assert found.shape == (2, 5, 3)
        assert found[0].tolist() == [[1, 5, 0]] * 3 + [[0, 0, 0]] * 2
    with serving(service, fixed_length=True) as server, server.client() as client:
        assert client.encode(["good"]).shape == (1, 16, 3)


def test_classification_answers_probabilities_and_regression_a_value():
    with serving(pooling="classification") as server, server.client() as client:
        assert client.encode(["good", "bad"]).tolist() == [[0.25, 0.75]] * 2
        assert client.server_config["pooling_strategy"] == 7
        with pytest.warns(UserWarning, match="does not support showing tokenization"):
            client.encode(["good"], show_tokens=True)
        with pytest.raises(TypeError, match="texts must be given as text .is_tokenized=False."):
            client.encode([["good"]], is_tokenized=True)
    with serving(pooling="regression", head="price") as server, server.client() as client:
        assert client.encode(["good", "bad"]).tolist() == [[9.0], [9.0]]


def test_a_head_that_cannot_be_told_ends_the_start():
    for changes, message in (
        (
            {"pooling": "regression"},
            "zmq.head must be a regression head of the model; got null. Options: stars, price.",
        ),
        ({"pooling": "classification", "head": "imbd"}, "got imbd. Options: imdb. Did you mean imdb?"),
    ):
        bridge = ZmqBridge(Models(Standin()), validate(SETTINGS | changes, ZmqConfig), "mean", [-1])

        async def run(bridge: ZmqBridge = bridge) -> None:
            bridge.bind()
            await bridge.run()

        with pytest.raises(Refused) as caught:
            asyncio.run(run())
        assert message in str(caught.value)


# Errors


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["good", " "], "server error: texts.1 must not be empty"),
        (["crash"], "server error: the server failed; its log says why"),
    ],
)
def test_an_error_raises_at_once_in_the_client_and_says_why(server, texts, message):
    with server.client() as client:
        client._check_input_lst_str = lambda texts: None  # the client refuses empty texts itself
        began = time.monotonic()
        with pytest.raises((TypeError, ValueError)) as caught:
            client.encode(texts)
        assert time.monotonic() - began < 1
        assert message in str(caught.value) and "secret" not in str(caught.value)
        assert client.encode(["good"]).shape == (1, 3)


def test_an_error_is_read_by_clients_that_know_its_key(server):
    with raw(server) as (send, receive):
        send([b"raw", b'["good", ""]', b"7", b"2"])
        _, content, numbers, request_id = receive()
        assert json.loads(content)["error"] == {"type": "invalid_request", "message": "texts.1 must not be empty"}
        assert (numbers, request_id) == (b"", b"7")


@pytest.mark.parametrize(
    ("frames", "message", "request_id"),
    [
        ([b"raw"], "4 frames: identity, texts, request id, count; got 1", b"0"),
        ([b"raw", b'["a"]', b"3"], "got 3", b"3"),
        ([b"raw", b'["a"]', b"3", b"1", b"5"], "got 5", b"3"),
        ([b"raw", b'["a"]', b"x", b"1"], "the request id must be a whole number; got b'x'", b"0"),
        ([b"raw", b'["a"]', b"3", b"NaN"], "the count must be a whole number; got b'NaN'", b"3"),
        ([b"raw", b'["a"]', b"3", b"-1"], "the count must be a whole number", b"3"),
        ([b"raw", b'["a"]', b"3", b"2"], "the count must be that of the texts, 1; got 2", b"3"),
        ([b"raw", b"[]", b"3", b"0"], "at least one text; got an empty list", b"3"),
        ([b"raw", b"{}", b"3", b"0"], "got an empty dict", b"3"),
        ([b"raw", b"REGISTER", b"3", b"1"], "must be a JSON list, or a command", b"3"),
        ([b"raw", b'["\xff"]', b"3", b"1"], "UnicodeDecodeError", b"3"),
        ([b"raw", b"[" * 100_000, b"3", b"1"], "RecursionError", b"3"),
        ([b"raw", b"[" + b"9" * 5000 + b"]", b"3", b"1"], "ValueError", b"3"),
        ([b"raw", b"[1]", b"3", b"1"], "text 0 is a number", b"3"),
        ([b"raw", b'["a", NaN]', b"3", b"2"], "text 1 is a number", b"3"),
        ([b"raw", b'["a", ["b"]]', b"3", b"2"], "text 1 is a list", b"3"),
        ([b"raw", b'[["a", ["b"]]]', b"3", b"1"], "text 0 is a list", b"3"),
        ([b"raw", b'["' + b"a" * (1 << 20) + b'"]', b"3", b"1"], "at most 1048576 bytes as JSON; got 1048580", b"3"),
    ],
)
def test_malformed_frames_are_answered(server, frames, message, request_id):
    with raw(server) as (send, receive):
        send(frames)
        answer = receive()
        assert message in json.loads(answer[1])["error"]["message"]
        assert answer[3] == request_id


def test_a_lone_surrogate_is_answered_as_text_of_the_service(server):
    with raw(server) as (send, receive):
        send([b"raw", b'["good \\ud800"]', b"1", b"1"])
        assert json.loads(receive()[1])["shape"] == [1, 3]


def test_a_reply_that_would_be_too_large_is_refused():
    service = Standin()
    service.none = True
    with serving(service, reply=1000, piece=8) as server, server.client() as client:
        with pytest.raises(TypeError, match="texts must be fewer: one reply has at most 1000 bytes; got 1152"):
            client.encode(["good film a good"] * 100)
        assert service.asked == [8, 8]


def test_ten_thousand_malformed_messages_disturb_nobody(server):
    chance = random.Random(1)
    sizes = [0, 1, 2, 3, 4, 4, 4, 4, 5, 20]
    contents = [
        b"",
        b"[",
        b'["a", 1]',
        b"SHOW",
        b'{"a": [[]]}',
        b"\x00\xff",
        b"null",
        b"NaN",
        b'[["a"], "b"]',
        b"1e999",
    ]

    def frame() -> bytes:
        return chance.choice([chance.choice(contents), chance.randbytes(chance.randrange(40))])

    with server.client() as neighbour, raw(server) as (send, receive):
        began = time.monotonic()
        for number in range(10_000):
            size = chance.choice(sizes)
            if number % 1000 == 0:
                neighbour.encode(["good"], blocking=False)
            if size == 4 and chance.random() < 0.5:
                send([frame(), frame(), b"%d" % number, b"1"])
            else:
                send([frame() for _ in range(size or 1)])
        send([b"raw", b"no", b"1", b"1"])
        while receive()[3] != b"1":  # the last of that connection is answered, so all are read
            pass
        assert neighbour.fetch_all(concat=True).shape == (10, 3)
        assert neighbour.encode(["a good film"]).tolist() == [[3, 4, 0]]
        assert time.monotonic() - began < 5
    outbox = server.bridge._outbox
    assert outbox._refusals.count <= 256
    eventually(lambda: not server.bridge._open)


def test_messages_to_the_port_of_replies_disturb_nobody(server):
    with zmq.Context() as context, context.socket(zmq.XSUB) as xsub:
        xsub.linger = 0
        xsub.connect(f"tcp://127.0.0.1:{server.ports[1]}")
        for number in range(2000):
            first = [b"\x01", b"\x00", b"\x02", b""][number % 4]
            xsub.send_multipart([first + random.randbytes(number % 20)] * (number % 3 + 1))
        with server.client() as client:
            assert client.encode(["good"]).shape == (1, 3)


def test_clients_that_come_and_go_leave_nothing_behind():
    with serving() as server:
        for _ in range(30):
            with server.client() as client:
                client.encode(["good"])
        eventually(lambda: not server.bridge._outbox._subscribers)
        assert not server.bridge._outbox._subscribers


# Whom replies go to


def test_an_identity_that_begins_with_another_has_its_own_answers(server):
    with (
        server.client(identity=b"user1") as one, server.client(identity=b"user10") as ten,
        server.client(identity=b"user") as none, raw(server, b"") as (_, everything),
    ):  # fmt: skip
        ten.encode(["good film"], blocking=False)
        one.encode(["a a a a a"], blocking=False)
        assert [each.tolist() for each in one.fetch_all()] == [[[5, 4, 0]]]
        assert [each.tolist() for each in ten.fetch_all()] == [[[2, 5, 0]]]
        for client in (one, ten, none):
            assert not client.receiver.poll(50)
        assert everything(0.05) is None


def test_the_first_frame_is_the_identity_whatever_it_is(server):
    for identity in (b"a", b"a\0", b"\0\xff", b"x" * 254):
        with raw(server, identity) as (send, receive):
            send([identity, b'["good"]', b"1", b"1"])
            assert receive()[0] == identity


def test_a_reply_waits_for_its_subscription(server):
    with raw(server, b"late", subscribe=False) as (send, receive):
        send([b"late", b'["good"]', b"1", b"1"])
        send([b"late", b"SHOW_CONFIG", b"2", b"0"])
        assert receive(0.2) is None
        receive.socket.subscribe(b"late")
        assert sorted(receive()[-1] for _ in range(2)) == [b"1", b"2"]


def test_a_reply_that_nobody_subscribes_to_is_dropped_in_time():
    held = SETTINGS["held"] | {"seconds": 0.1}
    with serving(held=held) as server, raw(server, b"late", subscribe=False) as (send, receive):
        send([b"late", b'["good"]', b"1", b"1"])
        eventually(lambda: server.models.newest.asked and server.bridge._outbox._answers.count)
        eventually(lambda: not server.bridge._outbox._answers.count)
        receive.socket.subscribe(b"late")
        assert receive(0.2) is None


def test_a_slow_subscriber_gets_its_replies_later_and_holds_up_nobody():
    service = Standin()
    service.none = True
    service.ids = lambda text: [5] * 20_000  # 240 KB a reply
    with serving(service) as server, raw(server) as (send, receive), server.client() as client:
        receive.socket.set(zmq.RCVHWM, 1)
        for number in range(1, 101):
            send([b"raw", b'["good"]', b"%d" % number, b"1"])
        eventually(lambda: server.bridge._outbox._answers.count)
        assert server.bridge._outbox._answers.count > 0
        assert client.encode(["good"]).shape == (1, 20_002, 3)
        assert sorted(int(receive()[3]) for _ in range(100)) == [*range(1, 101)]


def test_where_too_much_is_held_the_largest_holder_gives_way_and_is_told():
    held = Held(replies=10, size=10_000)
    held.add(b"small", Reply(frames.config({}, b"1")))
    for number in range(6):
        held.add(b"slow", Reply([b"{}", bytes(3000), b"%d" % number]))
    assert held.size <= 10_000
    assert held.count == 7
    assert held.pop(b"small").frames == [b"{}", b"1"]
    kinds = ["error" in json.loads(held.pop(b"slow").frames[0]) for _ in range(6)]
    assert kinds == [False, False, True, True, True, True] or sum(kinds) >= 3
    assert (held.count, held.size, held.queues) == (0, 0, {})
    for number in range(12):
        held.add(b"slow", Reply([b"{}", b"", b"%d" % number]))
    assert (held.count, held.pop(b"slow").request_id) == (9, b"3")


def test_requests_of_a_client_that_left_are_dropped():
    service = Standin(delay=0.05)
    held = SETTINGS["held"] | {"seconds": 0.1}
    with serving(service, piece=1, held=held) as server:
        with server.client() as client:
            client.encode(["good"] * 1000, blocking=False)
            eventually(lambda: service.asked)
        eventually(lambda: service.cancelled)
        assert service.cancelled == 1 and len(service.asked) < 100


# Limits, and the end


def test_requests_beyond_the_limit_are_not_received():
    service = Standin(delay=0.2)
    with serving(service, requests=3) as server, server.client(ignore_all_checks=True) as client:
        for _ in range(12):
            client.encode(["good"], blocking=False)
        time.sleep(0.1)
        assert len(server.bridge._open) == 3
        assert len(client.fetch_all()) == 12


def test_termination_is_ignored_unless_allowed(server):
    with raw(server, b"0") as (send, _), server.client() as client:
        send([b"0", b"TERMINATION", b"0", b"0"])
        assert client.encode(["good"]).shape == (1, 3)
    with serving(terminate=True) as ending, raw(ending, b"0") as (send, _):
        send([b"0", b"TERMINATION", b"0", b"0"])
        ending.join()


def test_the_end_waits_for_open_requests_and_refuses_the_rest():
    with serving(Standin(delay=0.3), requests=2) as server, server.client(ignore_all_checks=True) as client:
        for _ in range(4):
            client.encode(["good"], blocking=False)
        eventually(lambda: len(server.bridge._open) >= 2)
        time.sleep(0.1)
        server.stop()
        answers = [json.loads(client.receiver.recv_multipart()[1]) for _ in range(4)]
        assert sum(answer["shape"] == [1, 3] for answer in answers) == 2
        assert sum("the server ends; ask again" in answer["dtype"] for answer in answers) == 2


def test_a_second_cancellation_ends_what_is_open():
    with serving(Standin(delay=60)) as server, server.client(ignore_all_checks=True) as client:
        client.encode(["good"], blocking=False)
        eventually(lambda: server.models.newest.asked)
        for _ in range(2):
            server.loop.call_soon_threadsafe(server.task.cancel)
            time.sleep(0.1)
        server.join()
    assert server.models.newest.cancelled == 1


def test_a_port_that_is_taken_is_named(server):
    config = validate(SETTINGS | {"port": server.ports[0]}, ZmqConfig)

    async def bind() -> None:
        ZmqBridge(Models(Standin()), config, "mean", [-1]).bind()

    with pytest.raises(ZmqAddressError, match=f"^zmq.port must be free, and open to this user; got {server.ports[0]}"):
        asyncio.run(bind())


def test_keys_that_do_not_fit_together_are_named():
    faults = {
        (None, 5556, None, None): ["zmq.port must be given where zmq.port_out is; got null."],
        (5555, 5555, None, None): ["zmq.port_out must be another port than zmq.port, 5555; got 5555."],
        (5555, None, None, "imdb"): [
            "zmq.pooling must say what zmq.head is for; got null. Options: classification, regression."
        ],
        (5555, None, None, None): [],
    }
    for (port, port_out, pooling, head), messages in faults.items():
        changes = {"port": port, "port_out": port_out, "pooling": pooling, "head": head}
        assert list(map(str, validate(SETTINGS | changes, ZmqConfig).faults())) == messages
    assert validate(SETTINGS | {"port": 5555, "port_out": None}, ZmqConfig).out == 5556


def test_the_statistic_counts_as_the_original_in_bounded_memory():
    statistic = Statistic()
    for number in range(3000):
        statistic.request(b"%d" % number, number + 1)
    statistic.command(b"1")
    told = statistic.told()
    assert {key: told[key] for key in ("num_data_request", "num_sys_request", "num_total_request")} == {
        "num_data_request": 3000, "num_sys_request": 1, "num_total_request": 3001,
    }  # fmt: skip
    assert (told["num_total_client"], told["num_active_client"]) == (3001, 499)
    assert (told["max_size_per_request"], told["max_request_per_client"]) == (3000, 1)
    assert (len(statistic._clients), len(statistic._sizes)) == (500, 1000)


def test_a_version_that_ends_while_a_request_waits_for_room_is_not_asked(tmp_path):
    """It would not answer any more."""

    async def story() -> None:
        old, new = (local_service(load_bundle(write_bundle(tmp_path / name)), queue=1) for name in ("old", "new"))
        for service in (old, new):
            await service.start()
        models = SimpleNamespace(service=lambda: served)
        served = old
        with old.batcher.permit(1):
            asked = asyncio.create_task(TextVectors(models, validate(SETTINGS, ZmqConfig)).of(["good"]))
            await asyncio.sleep(0.05)
            served = new
            await old.close()
        vectors, _ = await asyncio.wait_for(asked, 5)
        assert vectors.shape == (1, 8)
        await new.close()

    asyncio.run(story())
