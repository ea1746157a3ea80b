# SPDX-License-Identifier: Apache-2.0
"""Before and after of a service as one text each, without any secret value."""

from __future__ import annotations

import hashlib
from typing import Dict, Mapping, Optional, Set, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.services.files import FileState
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import SECRET_LINE

MASK = "********"
CHANGED = "******** (changed)"


def mask_env(text: str, other: str, secret_names: Set[str], mark: bool) -> str:
    """An env file with its secret values masked; with `mark`, those that differ from `other` say so."""
    before = _values(other)
    lines = []
    below = False
    for line in text.rstrip("\n").split("\n"):
        name, sign, value = line.partition("=")
        if line == SECRET_LINE:
            below = True
            lines.append(line)
        elif sign and not line.startswith("#") and (below or name in secret_names):
            lines.append(f"{name}={CHANGED if mark and name in before and before[name] != value else MASK}")
        else:
            lines.append(line)
    return "\n".join(lines)


def secret_names(*texts: str) -> Set[str]:
    """The variables that stand below the secret line of env files."""
    names: Set[str] = set()
    for text in texts:
        _, _, below = text.partition(SECRET_LINE)
        names.update(line.partition("=")[0] for line in below.split("\n") if "=" in line)
    return names


def describe(
    *,
    before: Mapping[str, Optional[FileState]],
    after: Mapping[str, Optional[FileState]],
    lines: Tuple[Dict[str, str], Dict[str, str]],
    env_path: str,
    digest_paths: Set[str],
    secret_paths: Set[str],
) -> Dict[str, str]:
    """Ansible's `{before, after}`.

    `lines` are the state lines of both sides, by name. Of the files in `digest_paths` only the checksum is shown, of
    those in `secret_paths` nothing.
    """
    old_env, new_env = _text(before.get(env_path)), _text(after.get(env_path))
    names = secret_names(old_env, new_env)
    result = {}
    for side, files, state, other in (("before", before, lines[0], after), ("after", after, lines[1], before)):
        parts = [f"{name}: {value}" for name, value in state.items()]
        for path in sorted(files):
            file = files[path]
            if file is None:
                continue
            parts.append(f"--- {path} (mode {file.mode:04o}, owner {file.uid}:{file.gid})")
            counterpart = other.get(path)
            if path == env_path:
                text = mask_env(_text(file), _text(counterpart), names, mark=side == "after")
            elif path in secret_paths:
                differs = counterpart is not None and counterpart.content != file.content
                text = CHANGED if side == "after" and differs else MASK
            elif path in digest_paths:
                text = f"sha256 {hashlib.sha256(file.content).hexdigest()}"
            else:
                text = _text(file).rstrip("\n")
            parts.append(text)
        result[side] = "\n".join(parts) + "\n" if parts else ""
    return result


def _text(file: Optional[FileState]) -> str:
    return "" if file is None else file.content.decode("utf-8", "replace")


def _values(text: str) -> Dict[str, str]:
    return {line.partition("=")[0]: line.partition("=")[2] for line in text.split("\n") if not line.startswith("#")}
