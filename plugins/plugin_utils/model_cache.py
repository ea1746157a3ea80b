# SPDX-License-Identifier: Apache-2.0
"""The controller's own model store, from which models are carried to nodes, and the token for the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.models import keeper, store
from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import Sources

_TOKEN_NAME = "HF_TOKEN"  # noqa: S105 - the name of the line, not a secret


def read_token(file: str | None) -> str | None:
    """Return the token in an env file of the controller (a line ``HF_TOKEN=…``); None when there is no such file.

    Raises:
        StoreError: Others than its owner may read the file, it can't be read or it has no such line.
    """
    path = Path(file).expanduser() if file else None
    if path is None or not path.exists():
        return None
    if path.stat().st_mode & 0o077:
        raise StoreError(f"{path} on the controller can be read by others than its owner; run chmod 600 {path}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} on the controller can't be read; make it a text file of your user's") from error
    for line in lines:
        name, _sign, value = line.strip().removeprefix("export ").partition("=")
        if name.strip() == _TOKEN_NAME and value.strip():
            return value.strip().strip("'\"")
    raise StoreError(f"{path} on the controller has no line {_TOKEN_NAME}=…; add it, or remove the file")


class ModelCache:
    """A model store on the controller with the models of all nodes, laid out as on a node."""

    def __init__(self, folder: Path, node_root: str, sources: Sources) -> None:
        """``folder`` is the store on the controller, ``node_root`` the root of the node's."""
        self._root = str(folder)
        self._node_root = node_root
        self._sources = sources

    def local(self, path: str) -> str:
        """Return where a path of the node's store is here."""
        return str(Path(self._root) / os.path.relpath(path, self._node_root))

    def _rebased(self, model: Mapping[str, Any]) -> dict[str, Any]:
        return {**model, "path": self.local(str(model["path"]))}

    def item(self, model: Mapping[str, Any]) -> store.Item:
        """Return a model of the plan as it is here."""
        return store.item(self._rebased(model), self._root)

    def has(self, model: Mapping[str, Any]) -> bool:
        """Return whether a model is here, verified."""
        return self.item(model).is_placed()

    def manifest(self, model: Mapping[str, Any]) -> Any:
        """Return what a model consists of: as it is here, else as its source says."""
        found = self.item(model)
        return found.recorded() if found.is_placed() else found.manifest(self._sources)

    def fetch(
        self, model: Mapping[str, Any], manifest: Any, parallel: int, say: Callable[[keeper.Wanted], None]
    ) -> None:
        """Download what is missing here of a model.

        Args:
            model: An entry of the plan's models.
            manifest: What it consists of.
            parallel: Files that are downloaded at the same time.
            say: Is called from time to time with what is still wanted.

        Raises:
            StoreError: It could not be had.
        """
        while True:
            visit = self._inspect(model, manifest)
            if not visit.wanted:
                return
            keeper.bring(visit, self._sources, parallel=parallel, seconds=keeper.SLICE_SECONDS)
            if visit.added:
                return
            say(visit.wanted[0])

    def absent(self, model: Mapping[str, Any], manifest: Any) -> list[str]:
        """Return the paths here of the files that are missing here of a model; raises :class:`StoreError`."""
        return [blob.path for wanted in self._inspect(model, manifest).wanted for blob in wanted.blobs]

    def take(self, model: Mapping[str, Any], manifest: Any, files: Mapping[str, str]) -> None:
        """Verify files that were brought to the controller and place them.

        Args:
            model: An entry of the plan's models.
            manifest: What it consists of.
            files: Where each lies, by its path here.

        Raises:
            StoreError: A file is not what its checksum says.
        """
        keeper.bring(self._inspect(model, manifest), self._sources, carried=files, seconds=0)

    def _inspect(self, model: Mapping[str, Any], manifest: Any) -> keeper.Visit:
        rebased = self._rebased(model)
        manifests = {store.item(rebased, self._root).key: manifest}
        return keeper.inspect(
            [rebased], self._root, self._sources, manifests=manifests, setting="model_store_cache_path"
        )
