"""Keeps what anybody on the network can cause from filling the log."""

import logging
import time


class OncePerSecond(logging.Filter):
    """Lets a message pass once a second, whatever its arguments, and says how many were left out since."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last.get(record.msg, -1.0) < 1:
            self._left_out[record.msg] = self._left_out.get(record.msg, 0) + 1
            return False
        self._last[record.msg] = now
        if missed := self._left_out.pop(record.msg, 0):
            record.msg, record.args = f"{record.getMessage()} (and {missed} more)", ()
        return True
