# SPDX-License-Identifier: Apache-2.0
"""The model store of one node: what is there, is it what the plan wants, and placing what is missing.

Below the store's root: ``gguf`` (files), ``huggingface`` (a cache of repositories, see ``hub``), ``ollama`` (Ollama's
own store, see ``ollama``) and ``.receipts``. Standard library only, Python 3.8+: this runs on the nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import Any, Dict, List, Mapping, Optional, Protocol, Sequence

from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import Blob, Receipt, StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.download import hash_stream
from ansible_collections.fleet.inference.plugins.module_utils.models.hub import Repository
from ansible_collections.fleet.inference.plugins.module_utils.models.ollama import Library
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import Sources
from ansible_collections.fleet.inference.plugins.module_utils.services.files import write_text


def receipt_path(path: str) -> str:
    """Return where the receipt of the model file ``path`` is kept."""
    return path + ".receipt.json"


def write_receipt(path: str, sha256: str, receipt: Optional[str] = None) -> None:
    """Record that ``path``, as it is now, has ``sha256``."""
    status = os.stat(path)
    record = {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    write_text(receipt or receipt_path(path), json.dumps(record, sort_keys=True) + "\n")


def recorded_sha256(path: str, receipt: Optional[str] = None) -> Optional[str]:
    """Return the SHA-256 that the receipt of ``path`` vouches for, or ``None`` when file and receipt disagree."""
    try:
        status = os.stat(path)
        with open(receipt or receipt_path(path), encoding="utf-8") as stream:
            record = json.load(stream)
        if record["size"] == status.st_size and record["mtime_ns"] == status.st_mtime_ns:
            return str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def verified(
    path: str, sha256: str, size_bytes: Optional[int], receipt: Optional[str] = None, record: bool = True
) -> bool:
    """Return whether ``path`` is a file with ``sha256``; read it only when no receipt vouches for it.

    ``record`` false writes no receipt (check mode).
    """
    try:
        status = os.stat(path)
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode) or (size_bytes and status.st_size != size_bytes):
        return False
    known = recorded_sha256(path, receipt)
    if known is None:
        with open(path, "rb") as stream:
            known = hash_stream(stream).hexdigest()
        if record:
            # A store that can't take the receipt is still readable; the next call hashes again.
            with contextlib.suppress(OSError):
                write_receipt(path, known, receipt)
    return known == sha256


class FileReceipt:
    """Remembers the checksum of one file in a file beside it."""

    def __init__(self, record: bool = True) -> None:
        """``record`` false writes nothing (check mode)."""
        self._record = record

    def verified(self, blob: Blob) -> bool:
        """Return whether the file has its checksum; read it only when no receipt vouches for it."""
        return verified(blob.path, blob.checksum, blob.size_bytes, record=self._record)

    def add(self, blob: Blob) -> None:
        """Record that the file, as it is now, has its checksum."""
        write_receipt(blob.path, blob.checksum)


class Item(Protocol):
    """A wanted model. What its manifest is (plain values), only the item itself knows."""

    needs_manifest: bool

    @property
    def key(self) -> str:
        """What tells it from all other wanted models."""

    @property
    def receipts(self) -> Receipt:
        """What remembers which of its files have their checksum."""

    def is_placed(self) -> bool:
        """Return whether it is there, verified; asks nobody."""

    def recorded(self) -> Any:
        """Return its manifest from when it was placed; None without one."""

    def manifest(self, sources: Sources) -> Any:
        """Find out what it consists of; raises :class:`StoreError`."""

    def blobs(self, content: Any, sources: Sources) -> List[Blob]:
        """Return the files that a manifest lists."""

    def link(self, content: Any) -> None:
        """Make it usable, once all its files are there."""


class ModelFile:
    """A wanted GGUF file: the catalog says everything about it."""

    #: Whether somebody must be asked what it consists of.
    needs_manifest = False

    def __init__(self, model: Mapping[str, Any], record: bool = True) -> None:
        """``model`` is an entry of the plan's models; ``record`` false writes no receipts (check mode)."""
        self._model = model
        self.receipts = FileReceipt(record)

    @property
    def key(self) -> str:
        """What tells it from all other wanted models."""
        return str(self._model["path"])

    def is_placed(self) -> bool:
        """Return whether the file is there with its checksum."""
        return self.receipts.verified(self._blob(Sources()))

    def recorded(self) -> None:
        """Return nothing: it has no manifest."""

    def manifest(self, sources: Sources) -> None:
        """Return nothing: there is nothing to ask."""

    def blobs(self, content: None, sources: Sources) -> List[Blob]:
        """Return the file."""
        return [self._blob(sources)]

    def link(self, content: None) -> None:
        """Do nothing: the file is used as it is."""

    def _blob(self, sources: Sources) -> Blob:
        name = os.path.basename(self.key)
        url = (self._model.get("source") or {}).get("url")
        url = sources.hub.mirrored(url) if url else None
        return Blob(
            path=self.key,
            size_bytes=int(self._model["size_bytes"]),
            checksum=str(self._model["sha256"]),
            url=url,
            title=name,
            name=name,
            token=sources.hub.token_for(url) if url else None,
        )


def item(model: Mapping[str, Any], root: str, record: bool = True) -> Item:
    """Return what handles an entry of the plan's models; ``record`` false writes no receipts (check mode)."""
    if model.get("repository"):
        return Repository(model, root, record)
    if model.get("ollama"):
        return Library(model, root, record)
    return ModelFile(model, record)


def check_models(models: Sequence[Mapping[str, Any]], root: str) -> None:
    """Raise :class:`StoreError` unless every wanted model has what is needed to get and verify it."""
    prefix = os.path.join(os.path.normpath(root), "")
    seen: Dict[str, str] = {}
    for model in models:
        path = str(model.get("path") or "")
        name = os.path.basename(path) or str(model.get("model") or "a model")
        if not os.path.normpath(path).startswith(prefix):
            raise StoreError(f"{name}: path '{path}' is not below the model store {root}; give an absolute path there")
        size = model.get("size_bytes")
        if not isinstance(size, int) or size <= 0:
            raise StoreError(f"{name}: size_bytes is '{size}'; give the file's size in bytes")
        if model.get("repository"):
            if not model.get("revision"):
                raise StoreError(f"{name}: repository {model['repository']} has no revision; give a commit, or main")
        elif not model.get("ollama"):
            _check_file(model, name)
            sha256 = str(model["sha256"])
            if seen.setdefault(path, sha256) != sha256:
                raise StoreError(
                    f"{name}: two models want {path} with different sha256; give one of them another file name"
                )


def _check_file(model: Mapping[str, Any], name: str) -> None:
    sha256 = str(model.get("sha256") or "")
    if len(sha256) != 64 or any(digit not in "0123456789abcdef" for digit in sha256):
        raise StoreError(f"{name}: sha256 '{sha256}' is no SHA-256; give the file's 64 lower-case hexadecimal digits")
    source = model.get("source")
    kinds = [kind for kind in ("url", "file", "package") if source.get(kind)] if isinstance(source, Mapping) else []
    if len(kinds) != 1:
        raise StoreError(f"{name}: source must have exactly one of url, file and package, it has {kinds or 'none'}")
