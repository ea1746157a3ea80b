# SPDX-License-Identifier: Apache-2.0
"""What lies in a model store, model by model, whoever wanted it; and removing one of them.

Standard library only, Python 3.8+: this runs on the nodes.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set

from ansible_collections.fleet.inference.plugins.module_utils.models import unused
from ansible_collections.fleet.inference.plugins.module_utils.models.ollama import parse_name

_FOLDER = "models--"
_RECEIPT, _PARTIAL = ".receipt.json", ".partial"


def find(root: str) -> List[Dict[str, Any]]:
    """Return the store's models, sorted by kind and name.

    Returns:
        ``[{key (a path), kind (gguf, repository or ollama), names, size_bytes}]``; the names are a file's, a
        repository's, or those that Ollama's store has for the same model.
    """
    return [*_files(root), *_repositories(root), *_library(os.path.join(root, "ollama"))]


def paths(keys: Sequence[str], root: str) -> List[str]:
    """Return the paths that go with models of these keys: what no other model of the store needs."""
    entries = [entry for entry in find(root) if entry["key"] in keys]
    found: List[str] = []
    for entry in entries:
        key = str(entry["key"])
        if entry["kind"] == "gguf":
            found += [path for path in (key, key + _RECEIPT) if os.path.lexists(path)]
        elif entry["kind"] == "repository":
            receipt = os.path.join(root, ".receipts", "huggingface", os.path.basename(key) + ".json")
            found += [path for path in (key, receipt, receipt + ".lock") if os.path.lexists(path)]
    return sorted([*found, *_library_paths([entry for entry in entries if entry["kind"] == "ollama"], root)])


def _files(root: str) -> List[Dict[str, Any]]:
    found = []
    for folder, _folders, names in os.walk(os.path.join(root, "gguf")):
        for name in names:
            path = os.path.join(folder, name)
            if not name.endswith(_RECEIPT):
                found.append({"key": path, "kind": "gguf", "names": [name], "size_bytes": unused.size_bytes([path])})
    return sorted(found, key=lambda entry: (entry["names"], entry["key"]))


def _repositories(root: str) -> List[Dict[str, Any]]:
    top = os.path.join(root, "huggingface")
    return [
        {
            "key": os.path.join(top, name),
            "kind": "repository",
            "names": [name[len(_FOLDER) :].replace("--", "/", 1)],
            "size_bytes": unused.size_bytes([os.path.join(top, name)]),
        }
        for name in (sorted(os.listdir(top)) if os.path.isdir(top) else ())
        if name.startswith(_FOLDER)
    ]


def _library(top: str) -> List[Dict[str, Any]]:
    """Return the models of Ollama's store; names with the same manifest are one model."""
    groups: Dict[str, List[str]] = {}
    for path in _manifests(top):
        groups.setdefault(_text(path), []).append(path)
    found = []
    for text, members in groups.items():
        layers = _layers(text)
        found.append(
            {
                "key": members[0],
                "kind": "ollama",
                "names": [_name(os.path.relpath(path, os.path.join(top, "manifests"))) for path in members],
                "size_bytes": unused.size_bytes([os.path.join(top, "blobs", layer) for layer in sorted(layers or ())]),
            }
        )
    return found


def _library_paths(entries: Sequence[Mapping[str, Any]], root: str) -> List[str]:
    """Return manifests and the layers that no other manifest has; no layer where one of the others can't be read."""
    top = os.path.join(root, "ollama")
    texts = {_text(str(entry["key"])) for entry in entries}
    manifests = _manifests(top)
    gone = [path for path in manifests if _text(path) in texts]
    others = [_layers(_text(path)) for path in manifests if path not in gone]
    if any(layers is None for layers in others):
        return gone
    kept = {layer for layers in others for layer in layers or ()}
    mine = {layer for text in texts for layer in _layers(text) or ()}
    blobs = [os.path.join(top, "blobs", layer) for layer in sorted(mine - kept)]
    return [*gone, *(path for path in blobs if os.path.lexists(path))]


def _manifests(top: str) -> List[str]:
    return sorted(
        os.path.join(folder, name)
        for folder, _folders, names in os.walk(os.path.join(top, "manifests"))
        for name in names
    )


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def _layers(text: str) -> Optional[Set[str]]:
    """Return the names of a manifest's blobs; None for a text that is no manifest."""
    try:
        content = json.loads(text)
        return {str(layer["digest"]).replace(":", "-") for layer in [content["config"], *content["layers"]]}
    except (ValueError, KeyError, TypeError):
        return None


def _name(path: str) -> str:
    """Return the shortest name that Ollama reads as this manifest's path."""
    parts = tuple(path.split(os.sep))
    if len(parts) != 4:
        return path
    host, namespace, model, tag = parts
    for name in (model, f"{model}:{tag}", f"{namespace}/{model}", f"{namespace}/{model}:{tag}"):
        if parse_name(name) == parts:
            return name
    return f"{host}/{namespace}/{model}:{tag}"
