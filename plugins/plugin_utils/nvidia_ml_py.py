# SPDX-License-Identifier: Apache-2.0
"""The part of nvidia-ml-py that the facts use, small enough to travel with the module.

The whole module is 330 kB of source: a node would compile it anew for every run, which takes longer than everything
else that the facts do. What the facts call is about a twentieth of it.
"""

from __future__ import annotations

import ast
import base64
import functools
import importlib.util
import re
import zlib
from pathlib import Path

from ansible_collections.fleet.inference.plugins.module_utils import hardware

# Names of NVML in the sources that use it.
_USED = re.compile(r"\b(?:c_)?nvml[A-Z]\w+|\bNVML\w+")
# nvidia-ml-py makes its exceptions of every constant with this prefix.
_ERROR_CODES = "NVML_ERROR_"


@functools.lru_cache(maxsize=1)
def carried() -> str | None:
    """Return what the module takes as ``_pynvml``: compressed source as base64; None without nvidia-ml-py here."""
    spec = importlib.util.find_spec("pynvml")
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    folder = Path(next(iter(hardware.__path__)))
    source = trimmed(Path(spec.origin).read_text("utf-8"), (folder / "nvml.py").read_text("utf-8"))
    return base64.b64encode(zlib.compress(source.encode(), 9)).decode()


def trimmed(source: str, user: str) -> str:
    """Return nvidia-ml-py's `source` without the definitions that the Python source `user` does not lead to."""
    tree = ast.parse(source)
    definitions: dict[str, list[ast.stmt]] = {}
    wanted: list[str] = []
    for statement in tree.body:
        names = _defined(statement)
        for name in names:
            definitions.setdefault(name, []).append(statement)
        if not names:
            wanted += _mentioned(statement)
    wanted += [name for name in definitions if name.startswith(_ERROR_CODES)]
    wanted += _USED.findall(user)
    kept: set[int] = set()
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for statement in definitions.get(name, []):
            if id(statement) not in kept:
                kept.add(id(statement))
                wanted += _mentioned(statement)
    body = [item for item in tree.body if id(item) in kept or (not _defined(item) and not _is_text(item))]
    return ast.unparse(ast.Module(body=body, type_ignores=[])) + "\n"


def _defined(statement: ast.stmt) -> list[str]:
    """Return the names that a statement at the top of the module defines; none for imports, calls and the like."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return []


def _mentioned(statement: ast.stmt) -> list[str]:
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
