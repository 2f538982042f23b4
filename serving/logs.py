"""Logs as JSON, one object a line, on standard error."""

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any

FIELDS = ("request_id", "status", "milliseconds")
"""What a record may carry beside its message."""
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the HTTP request that is being answered; None of other protocols' requests."""


class JsonFormatter(logging.Formatter):
    """time (UTC), level, logger and message; a request's id, status and milliseconds; an error's traceback."""

    converter = time.gmtime  # type: ignore[assignment]  # of the same arguments
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": self.formatTime(record), "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(),
        }  # fmt: skip
        told |= {field: getattr(record, field) for field in FIELDS if hasattr(record, field)}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def log_to_stderr(requests: bool) -> None:
    """Sets all loggers of the process up; `requests` says whether every request is told of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "asyncio", "httpx", "openvino"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("serving.access").disabled = not requests
