# SPDX-License-Identifier: Apache-2.0
"""Check that ansible-doc renders every plugin and role of the collection; each is documented under its own name."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLLECTION = "fleet.inference"
# Plugins that are called by a file's name; a file of filters may hold several under other names.
KINDS = {"module": "modules", "lookup": "lookup", "inventory": "inventory", "callback": "callback", "test": "test"}


def filter_names() -> list[str]:
    """Names of all filters, from their own classes."""
    sys.path.insert(0, str(ROOT / ".collections"))
    names: list[str] = []
    for file in sorted((ROOT / "plugins" / "filter").glob("*.py")):
        module = importlib.import_module(f"ansible_collections.fleet.inference.plugins.filter.{file.stem}")
        names += module.FilterModule().filters()
    return names


def wanted() -> dict[str, list[str]]:
    """Names to document by kind; an action is documented by the module of its name."""
    names = {kind: [file.stem for file in (ROOT / "plugins" / folder).glob("*.py")] for kind, folder in KINDS.items()}
    names["module"] += [file.stem for file in (ROOT / "plugins" / "action").glob("*.py")]
    names["filter"] = filter_names()
    names["role"] = [path.name for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir()]
    return {kind: sorted(set(found) - {"__init__"}) for kind, found in names.items() if found}


def main() -> int:
    """Print what is missing; exit status 1 when something is."""
    problems = []
    for kind, names in wanted().items():
        full = [f"{COLLECTION}.{name}" for name in names]
        done = subprocess.run(
            ["ansible-doc", "--json", "-t", kind, *full], cwd=ROOT, capture_output=True, text=True, check=False
        )
        shown = json.loads(done.stdout) if done.returncode == 0 else {}
        missing = [name for name in full if not shown.get(name) or "error" in shown[name]]
        if missing or done.stderr.strip():
            problems.append(f"{kind}: {', '.join(missing)} {done.stderr.strip()}")
        # The page that people read is rendered by other code than the JSON.
        page = subprocess.run(["ansible-doc", "-t", kind, *full], cwd=ROOT, capture_output=True, text=True, check=False)
        if page.returncode != 0:
            problems.append(f"{kind}: {page.stderr.strip()}")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
