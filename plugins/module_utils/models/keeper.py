# SPDX-License-Identifier: Apache-2.0
"""One visit to a model store: what is missing, and what of it can be brought now.

Standard library only, Python 3.8+: this runs on the nodes, and on the controller for what it carries to them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import (
    Blob,
    arrived_bytes,
    check_space,
    place,
    place_all,
)
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import Sources
from ansible_collections.fleet.inference.plugins.module_utils.models.store import Item, check_models, item

#: How long a visit lasts that is not the last one, in seconds: how often the progress is told.
SLICE_SECONDS = 30


@dataclass
class Wanted:
    """A model that is not placed: what it consists of, and its files that are not there."""

    item: Item
    manifest: Any
    blobs: List[Blob]
    total_bytes: int

    @property
    def left_bytes(self) -> int:
        """Return the bytes that are still to come."""
        return sum(max(0, blob.size_bytes - arrived_bytes(blob)) for blob in self.blobs)


@dataclass
class Visit:
    """What a visit found (``missing``: keys of the models) and did (``added``: keys, ``placed``: paths)."""

    missing: List[str] = field(default_factory=list)
    wanted: List[Wanted] = field(default_factory=list)
    added: List[str] = field(default_factory=list)
    placed: List[str] = field(default_factory=list)


def inspect(
    models: Sequence[Mapping[str, Any]],
    root: str,
    sources: Sources,
    *,
    manifests: Optional[Mapping[str, Any]] = None,
    ask: bool = True,
    record: bool = True,
    setting: str = "inference_models_path",
) -> Visit:
    """Return what is missing of the wanted models, once it is certain that the store has room for it.

    Args:
        models: Entries of the plan's models.
        root: The store's root.
        sources: What is asked about models that are not placed.
        manifests: What is known about them already, by key.
        ask: False asks nobody; models without a manifest are then only told to be missing.
        record: False writes no receipts (check mode).
        setting: The variable that says where the store is, for messages.

    Raises:
        StoreError: An entry is wrong, a source does not have a model, or there is not enough room.
    """
    check_models(models, root)
    sources.check()
    visit = Visit()
    for found in {one.key: one for one in (item(model, root, record) for model in models)}.values():
        if found.is_placed():
            continue
        visit.missing.append(found.key)
        known = manifests is not None and found.key in manifests
        if not known and not ask and found.needs_manifest:
            continue
        manifest = manifests[found.key] if manifests is not None and known else found.manifest(sources)
        blobs = found.blobs(manifest, sources)
        left = [blob for blob in blobs if not found.receipts.verified(blob)]
        visit.wanted.append(Wanted(found, manifest, left, sum(blob.size_bytes for blob in blobs)))
    absent = [blob for wanted in visit.wanted for blob in wanted.blobs]
    if absent:
        check_space(absent, root, setting=setting)
    return visit


def describe(models: Sequence[Mapping[str, Any]], root: str, sources: Sources) -> Dict[str, Dict[str, Any]]:
    """Return the models that are placed, by key: ``manifest``, and ``files``, the paths of what it lists."""
    described = {}
    for model in models:
        found = item(model, root, record=False)
        if found.is_placed():
            manifest = found.recorded()
            described[found.key] = {
                "manifest": manifest,
                "files": [blob.path for blob in found.blobs(manifest, sources)],
            }
    return described


def bring(
    visit: Visit,
    sources: Sources,
    *,
    carried: Optional[Mapping[str, str]] = None,
    parallel: int = 4,
    seconds: Optional[float] = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Place what is missing and can be had from here, and say so in ``visit``.

    Args:
        visit: What ``inspect`` found.
        sources: How patiently it is read.
        carried: Files that were brought here (path in the store to where each lies); nothing is downloaded then.
        parallel: Files that are downloaded at the same time.
        seconds: After so long it returns with what it has; the next visit goes on there. None takes all the time.
        clock: Seconds that never go back.

    Raises:
        StoreError: Something could not be had; what was there before is as it was.
    """
    if carried:
        for wanted in visit.wanted:
            for blob in wanted.blobs:
                if blob.path in carried and place(blob, wanted.item.receipts, carried[blob.path], sources.patience):
                    visit.placed.append(blob.path)
    else:
        end = None if seconds is None else clock() + seconds
        # Two revisions of a repository share files.
        several = {
            blob.path: (blob, wanted.item.receipts) for wanted in visit.wanted for blob in wanted.blobs if blob.url
        }
        visit.placed += place_all(
            list(several.values()),
            parallel=parallel,
            patience=sources.patience,
            paused=lambda: end is not None and clock() >= end,
        )
    for wanted in visit.wanted:
        wanted.blobs = [blob for blob in wanted.blobs if not wanted.item.receipts.verified(blob)]
        if not wanted.blobs:
            wanted.item.link(wanted.manifest)
            visit.added.append(wanted.item.key)
