# SPDX-License-Identifier: Apache-2.0
"""What lies in a model store and no plan names; it is removed on request only.

Standard library only, Python 3.8+: this runs on the nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Set

from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.hub import Repository
from ansible_collections.fleet.inference.plugins.module_utils.models.ollama import parse_name


def find(models: Sequence[Mapping[str, Any]], root: str) -> List[str]:
    """Return the paths, files and folders, that none of the wanted models needs, sorted.

    A model that is not placed yet keeps everything that may belong to it.

    Args:
        models: Entries of the plan's models.
        root: The store's root.
    """
    found = [*_files(models, root), *_repositories(models, root), *_ollama(models, os.path.join(root, "ollama"))]
    return sorted(found)


def size_bytes(paths: Sequence[str]) -> int:
    """Return the bytes of files and of folders with all that is in them."""
    total = 0
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            total += sum(os.lstat(file).st_size for file in _walk(path))
        else:
            with contextlib.suppress(OSError):
                total += os.lstat(path).st_size
    return total


def remove(paths: Sequence[str], root: str) -> None:
    """Remove what ``find`` returned, and the folders that are empty then; raises :class:`StoreError`."""
    for path in paths:
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"{path} can't be removed: {error.strerror or error}; see to that disk") from error
        folder = os.path.dirname(path)
        while os.path.normpath(folder) != os.path.normpath(root):
            try:
                os.rmdir(folder)
            except OSError:
                break
            folder = os.path.dirname(folder)


def _walk(folder: str) -> Iterator[str]:
    for path, _folders, names in os.walk(folder):
        for name in names:
            yield os.path.join(path, name)


def _files(models: Sequence[Mapping[str, Any]], root: str) -> List[str]:
    """Return GGUF files, with what lies beside them of each."""
    wanted = {str(model["path"]) for model in models if model.get("sha256")}
    kept = {path + end for path in wanted for end in ("", ".receipt.json", ".partial")}
    return [path for path in _walk(os.path.join(root, "gguf")) if path not in kept]


def _repositories(models: Sequence[Mapping[str, Any]], root: str) -> List[str]:
    """Return repositories, and of those that are wanted the revisions and blobs that are not."""
    wanted: Dict[str, List[Repository]] = {}
    for model in models:
        if model.get("repository"):
            wanted.setdefault(str(model["path"]), []).append(Repository(model, root, record=False))
    unused: List[str] = []
    top = os.path.join(root, "huggingface")
    for name in _names(top):
        folder = os.path.join(top, name)
        if folder not in wanted:
            unused += [folder] if name.startswith("models--") else []
            continue
        manifests = [repository.recorded_revision() for repository in wanted[folder]]
        if any(manifest is None for manifest in manifests):
            continue
        commits = {manifest.commit for manifest in manifests if manifest}
        blobs = {entry[1] for manifest in manifests if manifest for entry in manifest.files.values()}
        revisions = {repository.revision for repository in wanted[folder]}
        unused += _others(os.path.join(folder, "snapshots"), commits)
        unused += _others(os.path.join(folder, "blobs"), blobs)
        references = os.path.join(folder, "refs")
        unused += [path for path in _walk(references) if os.path.relpath(path, references) not in revisions]
    receipts = os.path.join(root, ".receipts", "huggingface")
    known = {os.path.basename(folder) + end for folder in wanted for end in (".json", ".json.lock")}
    return [*unused, *_others(receipts, known)]


def _ollama(models: Sequence[Mapping[str, Any]], top: str) -> List[str]:
    """Return names of models in Ollama's store, and the layers that no other name has."""
    manifests = os.path.join(top, "manifests")
    names = {
        str(model.get(key) or model["ollama"]) for model in models for key in ("model", "ollama") if model.get("ollama")
    }
    wanted = {os.path.join(manifests, *parse_name(name)) for name in names}
    present = list(_walk(manifests))
    kept = [path for path in present if path in wanted]
    layers: Set[str] = set()
    for path in kept:
        try:
            with open(path, encoding="utf-8") as stream:
                content = json.load(stream)
            layers |= {str(layer["digest"]).replace(":", "-") for layer in [content["config"], *content["layers"]]}
        except (OSError, ValueError, KeyError, TypeError):
            # What can't be read may need any layer.
            return [path for path in present if path not in wanted]
    placed = all(
        os.path.join(manifests, *parse_name(str(model["ollama"]))) in kept for model in models if model.get("ollama")
    )
    others = _others(os.path.join(top, "blobs"), layers) if placed else []
    return [*(path for path in present if path not in wanted), *others]


def _names(folder: str) -> List[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _others(folder: str, wanted: Set[str]) -> List[str]:
    return [os.path.join(folder, name) for name in _names(folder) if name not in wanted]
