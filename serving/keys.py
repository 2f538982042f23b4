"""API keys: who may ask."""

import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from conf.errors import ConfigError, Problem

VARIABLE = "BERT_MTL_KEYS"
"""Of the environment: keys, parted by commas."""
SHORTEST = 16


class Keys:
    """The keys that are let in; without any, everybody is."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def admit(self, authorization: str | None) -> bool:
        """Whether a header `Bearer <key>` holds one of them; takes equally long for every wrong key."""
        if not self._keys:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        encoded = given.strip().encode(errors="surrogateescape")
        found = [hmac.compare_digest(encoded, key) for key in self._keys]
        return scheme.lower() == "bearer" and any(found)


def read_keys(file: Path | None) -> Keys:
    """Keys of a file, one a line (lines with # are notes), and of `VARIABLE`.

    Raises `ConfigError` where the file cannot be read, holds none, or a key is too short to be one.
    """
    given = [key.strip() for key in os.environ.get(VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([Problem("http.keys", f"be a file of text that can be read ({error})", file)]) from None
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ConfigError([Problem("http.keys", "hold at least one key", file)])
        given += found
    keys = [key for key in given if key]
    if short := [key for key in keys if len(key) < SHORTEST]:
        rule = f"hold keys of at least {SHORTEST} characters"
        raise ConfigError([Problem("http.keys", rule, f"{len(short)} shorter ones")])
    return Keys(keys)
