# SPDX-License-Identifier: Apache-2.0
"""The record of what a running service was started with, and whether that is still what lies on the node."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.services import files as fs
from ansible_collections.fleet.inference.plugins.module_utils.services.files import FileState

#: Files in a service's folder that it was not started with: they say what runs, or when it counts as ready.
NOT_STARTED_WITH = frozenset({"service.json", "readiness.json", "applied.json"})


@dataclass(frozen=True)
class Applied:
    """What the running service was started with (applied.json, which only root reads)."""

    fingerprint: str
    image_id: Optional[str]
    secret_files: Tuple[str, ...] = ()

    def to_json(self) -> str:
        record = {"fingerprint": self.fingerprint, "image_id": self.image_id, "secret_files": list(self.secret_files)}
        return json.dumps(record, indent=2) + "\n"


def read_json(file: Optional[FileState]) -> Mapping[str, Any]:
    """The object in a JSON file, empty when there is none or it is broken."""
    if file is None:
        return {}
    try:
        record = json.loads(file.content.decode("utf-8"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def read_applied(file: Optional[FileState]) -> Optional[Applied]:
    """The record in applied.json, None when there is none or it is broken."""
    record = read_json(file)
    digest = record.get("fingerprint")
    if not isinstance(digest, str):
        return None
    return Applied(digest, record.get("image_id"), tuple(record.get("secret_files") or ()))


def installed_contents(files: Mapping[str, Optional[FileState]], directory: str, unit_path: str) -> Dict[str, bytes]:
    """Contents, by path, of those of ``files`` that a start of the service reads."""
    return {
        path: state.content
        for path, state in files.items()
        if state is not None
        and (path == unit_path or os.path.dirname(path) == directory)
        and os.path.basename(path) not in NOT_STARTED_WITH
    }


def is_as_started(directory: str, unit_path: str) -> bool:
    """Whether the last start of a service read its files as they are now; raises ``OSError``.

    :param directory: the service's folder, such as ``/etc/inference-fleet/services/litellm-1``.
    """
    paths = [*fs.plain_files(directory), unit_path]
    files = {path: fs.read_file(path) for path in paths}
    applied = read_applied(files.get(os.path.join(directory, "applied.json")))
    return applied is not None and applied.fingerprint == fs.fingerprint(
        installed_contents(files, directory, unit_path)
    )
