"""The log file of a job, which a full disk must not turn into a flood of tracebacks."""

import logging
import sys


class LogFile(logging.FileHandler):
    """A file of log lines that says once, on stderr, that it cannot be written."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's
        if not self.told:
            self.told = True
            print(f"{self.baseFilename}: lines not written: {sys.exc_info()[1]}", file=sys.stderr)
