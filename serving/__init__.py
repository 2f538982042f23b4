"""Answers from a bundle. Shares no code with training: the bundle's manifest is the contract."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.client import AsyncClient, Client, ClientError

__all__ = ["AsyncClient", "Client", "ClientError"]


def __getattr__(name: str) -> Any:
    # On demand: the server and its workers shall not load an HTTP client with the package.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from serving import client

    return getattr(client, name)
