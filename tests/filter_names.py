# SPDX-License-Identifier: Apache-2.0
"""Print the name of every filter of the collection, for the documentation check."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".collections"))

for file in sorted((ROOT / "plugins" / "filter").glob("*.py")):
    module = importlib.import_module(f"ansible_collections.fleet.inference.plugins.filter.{file.stem}")
    for name in sorted(module.FilterModule().filters()):
        print(name)
