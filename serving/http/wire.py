"""uvicorn's HTTP/1.1 with bounds on what it takes before anybody looks at it: bytes of a head, seconds of a request."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = 65536
"""Bytes of a request's line and headers after the first piece that is received; more end the connection."""
PATIENCE = 60.0
"""Seconds in which a request must be there in full; a slower one ends the connection."""


class BoundedProtocol(HttpToolsProtocol):
    """Ends connections that send endless headers, or nothing (slowloris): uvicorn would keep both for ever."""

    _head: int | None = 0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > HEAD and not self.transport.is_closing():
            self.send_400_response(f"The request's head must have at most {HEAD} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        self._expect()

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._expect(False)
        super().on_message_complete()

    def _expect(self, more: bool = True) -> None:
        """Begins to wait for a whole request, or ends that."""
        if self._late:
            self._late.cancel()
        self._late = self.loop.call_later(PATIENCE, self.transport.close) if more else None
