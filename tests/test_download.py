"""Downloads against a real HTTP server on this machine: progress, resume, checksum, and every failure."""

import hashlib
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bert_mtl.config import SourceConfig
from bert_mtl.tasks import DataError
from data_prep.download import download, fetched

CONTENT = os.urandom(3 << 20)
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `ranges` tells whether it can continue, `cut` after how many bytes it breaks the connection."""

    ranges = True
    cut: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []  # the Range header of every request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/a.tar.gz?version=1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append(wanted)
        if not re.fullmatch(r"/data/\w+\.tar\.gz\?version=1", self.path):
            return self.send_error(404)
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.ranges else 0
        if begin >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            self.send_header("Content-Encoding", "gzip")  # what some servers say of every .gz file
        self.end_headers()
        self.wfile.write(CONTENT[begin : self.server.cut])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def seen(folder: Path) -> list[Path]:
    """What a user sees: all but the locks."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def message(*args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        download(*args, **kwargs)
    return str(caught.value)


def test_a_file_is_fetched_once_and_the_progress_shown(tmp_path, server, capsys):
    path = download(server.url, tmp_path / "new", checksum=CHECKSUM)
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("-a.tar.gz")
    assert re.search(r"a\.tar\.gz .*3\.1/3\.1 MB", capsys.readouterr().out)
    assert download(server.url, tmp_path / "new", checksum=CHECKSUM) == path
    assert server.asked == [None]
    assert seen(tmp_path / "new") == [path]


def test_a_cut_connection_keeps_what_came_and_goes_on_there(tmp_path, server):
    server.cut = 1 << 20
    said = message(server.url, tmp_path, checksum=CHECKSUM)
    assert said.startswith(f"{server.url} could not be fetched (")
    assert "Run the command again to go on where it stopped" in said
    (partial,) = seen(tmp_path)
    assert partial.read_bytes() == CONTENT[: 1 << 20]
    server.cut = None
    assert download(server.url, tmp_path, checksum=CHECKSUM).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={1 << 20}-"]
    assert not partial.exists()


def test_a_server_that_cannot_continue_is_asked_for_the_whole(tmp_path, server):
    server.cut = 1 << 20
    message(server.url, tmp_path)
    server.cut, server.ranges = None, False
    assert download(server.url, tmp_path, checksum=CHECKSUM).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_partial_file_that_is_whole_or_too_long_is_settled(tmp_path, server, extra):
    server.cut = 0
    message(server.url, tmp_path)
    (partial,) = seen(tmp_path)
    partial.write_bytes(CONTENT + extra)
    server.cut = None
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_another_checksum_removes_the_file(tmp_path, server):
    wrong = "0" * 64
    said = message(server.url, tmp_path, checksum=wrong)
    assert said == (
        f"{server.url} must have SHA-256 {wrong}; got {CHECKSUM} ({len(CONTENT):,} bytes). The file was removed."
    )
    assert seen(tmp_path) == []


def test_a_file_fetched_before_is_fetched_again_when_its_checksum_changed(tmp_path, server):
    path = download(server.url, tmp_path)
    path.write_bytes(b"old")
    assert download(server.url, tmp_path, checksum=CHECKSUM).read_bytes() == CONTENT


def test_a_missing_page_and_a_missing_server_say_what_to_do(tmp_path, server):
    url = server.url.replace("/data/", "/gone/")
    assert "404 Client Error" in message(url, tmp_path)
    with socket.socket() as free:  # bound, but nothing listens
        free.bind(("127.0.0.1", 0))
        said = message(f"http://127.0.0.1:{free.getsockname()[1]}/a.tar.gz", tmp_path)
    assert "Connection refused" in said and "pass data.path=<archive>" in said
    assert [path.read_bytes() for path in seen(tmp_path)] == [b"", b""]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, server):
    (tmp_path / "file").write_text("x")
    assert re.search(r"file/\S+-a\.tar\.gz could not be written: ", message(server.url, tmp_path / "file"))


def test_two_addresses_with_the_same_file_name_do_not_mix(tmp_path, server):
    paths = {download(f"{server.url}{end}", tmp_path) for end in ("", "#other")}
    assert len(paths) == 2


def test_a_file_without_a_checksum_is_fetched_with_a_warning(tmp_path, server, caplog):
    download(server.url, tmp_path, checksum=CHECKSUM)
    assert caplog.messages == []
    other = f"{server.url}#other"
    download(other, tmp_path)
    assert caplog.messages == [f"{other} has no checksum in its task: what comes is taken as it is"]
    download(other, tmp_path)
    assert len(caplog.messages) == 1  # it was there


def test_a_source_is_fetched_as_one_file_or_one_for_each_part(tmp_path, server):
    source = SourceConfig(format="jsonl", url=server.url, sha256=CHECKSUM)
    assert Path(fetched(source, tmp_path).path).read_bytes() == CONTENT
    url = server.url.replace("/a.", "/{part}.")
    parts = {"train": ["a", "b"], "test": "c"}
    source = SourceConfig(format="jsonl", url=url, parts=parts, sha256={"a": CHECKSUM, "b": CHECKSUM})
    paths = fetched(source, tmp_path).path
    assert {name: Path(path).name[9:] for name, path in paths.items()} == {n: f"{n}.tar.gz" for n in "abc"}
    with pytest.raises(DataError, match="must have SHA-256 00"):
        fetched(source.model_copy(update={"sha256": {"c": "00"}}), tmp_path)


def test_two_downloads_at_once_fetch_once(tmp_path, server):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(download(server.url, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert found[0] == found[1] and found[0].read_bytes() == CONTENT
