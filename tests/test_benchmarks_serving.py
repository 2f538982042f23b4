"""What the benchmark of serving asks and counts, on servers that are a few lines."""

import asyncio
import gzip
import json
import sys
import time

import numpy as np
import pytest

from benchmarks import serving
from benchmarks.peers.tf1_checkpoint import write
from benchmarks.processes import ServerProcess
from benchmarks.serving_sides import Http, Side
from bert_mtl.checkpoints import load_pretrained
from bert_mtl.encoder import BertEncoder, EncoderConfig

ECHO = """
import http.server, json, subprocess, sys, time
time.sleep(0.2)
subprocess.Popen([sys.executable, "-c", "import time; held = bytearray(b'x') * 30_000_000; time.sleep(60)"])
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        text = json.loads(self.rfile.read(int(self.headers["content-length"])))["texts"][0]
        body = json.dumps({"label": int("good" in text)}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def echo(code: str = ECHO) -> Side:
    def asker(port: int, _: int) -> Http:
        return Http(f"http://127.0.0.1:{port}/", 4, lambda text: {"texts": [text]}, lambda answer: answer["label"])

    return Side([sys.executable, "-c", code, "{port}"], asker, sys.executable, ())


def test_the_texts_are_half_of_each_source_and_label_and_always_the_same(tmp_path):
    for name in ("neg", "pos"):
        (tmp_path / name).mkdir()
        for number in range(10):
            (tmp_path / name / f"{number}.txt").write_text(f"imdb {name} {number}")
    rows = [{"text": f"sst2 {label} {number}", "label": label} for number in range(10) for label in (0, 1)]
    with gzip.open(tmp_path / "sst2.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    texts, labels = serving.read(tmp_path, tmp_path / "sst2.gz", 16)
    assert len(set(texts)) == 16 and sum(text.startswith("imdb") for text in texts) == 8
    assert [label for text, label in zip(texts, labels, strict=True) if "neg" in text or "sst2 0" in text] == [0] * 8
    assert labels.sum() == 8 and texts == serving.read(tmp_path, tmp_path / "sst2.gz", 16)[0]


def test_a_round_asks_each_text_once_with_so_many_clients():
    asked, now, most = [], 0, 0

    async def ask(text: str) -> int:
        nonlocal now, most
        asked.append(text)
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return int(text)

    found = asyncio.run(serving.drain(ask, [str(number) for number in range(9)], clients=3))
    assert sorted(asked) == [str(number) for number in range(9)] and most == 3
    assert found.answers == list(range(9))
    assert 0.06 <= found.seconds < 0.3 and min(found.latencies) >= 0.02


def test_a_row_is_of_the_fastest_round_and_beside_ours():
    def side(*seconds: float) -> dict:
        rounds = [serving.Round(each, [each / 2] * 4, [0, 1, 1, 1]) for each in seconds]
        return {"ready": 1.23, "short": 0.004, "memory": 99.6, "rounds": rounds}

    found = serving.row(side(4.0, 2.0), side(1.0, 3.0), np.array([0, 0, 1, 1]))
    assert found == {
        "requests_per_second": 2.0, "ours_to_it": 2.0, "p50_ms": 1000.0, "p95_ms": 1000.0, "our_p95_to_its": 0.5,
        "short_ms": 4.0, "accuracy": 75.0, "memory_mb": 100, "ready_seconds": 1.2, "rounds": [1.0, 2.0],
    }  # fmt: skip


def test_sides_are_started_asked_and_weighed_with_their_children(tmp_path):
    found = asyncio.run(serving.measure({"ours": echo()}, ["good", "bad"] * 8, 4, rounds=2, work=tmp_path))["ours"]
    assert found["ready"] >= 0.2 and 0 < found["short"] < 0.1
    assert [each.answers for each in found["rounds"]] == [[1, 0] * 8] * 2
    assert 30_000_000 / 2**20 < found["memory"] < 120


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path):
    side = echo("import sys; sys.exit('no such model')")
    with pytest.raises(RuntimeError, match="^the server ended with 1:\nno such model\n$"):
        asyncio.run(serving.measure({"ours": side}, ["good"], 1, rounds=1, work=tmp_path))


def test_a_process_group_ends_with_its_context(tmp_path):
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); sys.stdin.read(); import time; time.sleep(60)"
    with ServerProcess([sys.executable, "-c", code], tmp_path / "log", tmp_path, {}) as process:
        end = time.monotonic() + 10
        while process.memory_mb() < 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert process.memory_mb() > 1
    assert process.memory_mb() == 0


def test_the_encoder_survives_googles_format(tmp_path):
    config = EncoderConfig(
        vocab_size=11, hidden_dim=8, num_layers=2, num_heads=2, intermediate_dim=12, max_positions=16, pooler=False
    )
    first, second = BertEncoder(config), BertEncoder(config)
    weights = {variable.path.split("/", 1)[1]: np.array(variable) for variable in first.shared_weights}
    write({f"encoder/{path}": values for path, values in weights.items()} | {"imdb/logits/kernel": np.ones((8, 2))},
          tmp_path / "bert_model.ckpt")  # fmt: skip
    report = load_pretrained(second, tmp_path)
    assert (report.format, len(report.loaded), report.missing, report.unexpected) == (
        "google_tf1", len(weights), (), (),
    )  # fmt: skip
    for ours, theirs in zip(first.shared_weights, second.shared_weights, strict=True):
        assert np.array_equal(ours, theirs)
