"""Texts go to a server, answers come back: `Client("http://127.0.0.1:8000").classify(["A wonderful film."])`."""

import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import httpx


class ClientError(Exception):
    """The server could not be reached or refused the request; the message holds its address and says why."""

    user_error = True


class Client:
    """Asks one server; `timeout` is in seconds. Usable as a context manager, and from several threads."""

    def __init__(self, address: str = "http://127.0.0.1:8000", timeout: float = 30.0) -> None:
        self.address = address.rstrip("/")
        self.timeout = timeout
        self._http = httpx.Client(base_url=self.address, timeout=timeout)

    def classify(self, texts: Iterable[str], texts_b: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """For each text (or pair) an answer by head, `{"label": str, "probabilities": {label: float}}` or what its kind
        says, in the order of the texts.

        Warns where the model read only a part of a text. Raises `ClientError`.
        """
        if isinstance(texts, str) or isinstance(texts_b, str):
            raise TypeError("texts and texts_b must be lists of texts; got one text")
        pairs = {} if texts_b is None else {"texts_b": list(texts_b)}
        answer = self._post("/classify", {"texts": list(texts), **pairs})
        if cut := sum(answer["truncated"]):
            warnings.warn(f"{cut} of {len(answer['truncated'])} texts are longer than the model reads", stacklevel=2)
        return answer["results"]

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        url = self.address + path
        try:
            response = self._http.post(path, json=content)
        except httpx.TimeoutException:
            raise ClientError(f"{url} did not answer within {self.timeout:g} s") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ClientError(f"{url} cannot be reached: {error}") from error
        try:
            answer = response.json()
            if response.is_success:
                return answer
            reason = answer["error"]["message"]
        except (ValueError, KeyError, TypeError):
            reason = response.text[:200]
        raise ClientError(f"{url} answered {response.status_code}: {reason}")
