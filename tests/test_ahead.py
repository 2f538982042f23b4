"""Work ahead of its use: order, how far ahead, errors, and an end whenever it is no longer wanted."""

import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from bert_mtl.ahead import ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "ahead"]


def test_items_come_in_order_and_the_thread_ends():
    assert list(ahead(lambda: range(20), count=3)) == list(range(20))
    assert threads() == []


def test_no_more_is_made_than_was_asked_for_and_count():
    made = []
    with closing(ahead(lambda: (made.append(number) or number for number in range(50)), count=3)) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 5
        while len(made) < 5 and time.monotonic() < deadline:  # the one taken, three that wait, one in the hand
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3, 4]
    assert threads() == []


def test_what_makes_items_is_closed_with_them():
    ended = threading.Event()

    def make():
        try:
            yield from range(50)
        finally:
            ended.set()

    with closing(ahead(make)) as items:
        next(items)
    assert ended.wait(5)


def test_an_error_is_raised_behind_the_items_before_it():
    def make():
        yield 1
        raise ValueError("broken")

    items = ahead(make)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
    assert threads() == []


def test_a_process_that_fails_while_items_are_made_ends():
    code = (
        "import itertools; from bert_mtl.ahead import ahead; i = ahead(itertools.count); next(i); raise SystemExit(3)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 3
