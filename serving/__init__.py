"""Answers from a bundle. Shares no code with training: the bundle's manifest is the contract."""

from typing import Any

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    """The client, when it is asked for: a worker process shall not load an HTTP library."""
    if name in __all__:
        from serving import client

        return getattr(client, name)
    raise AttributeError(name)
