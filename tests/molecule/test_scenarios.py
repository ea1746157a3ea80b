# SPDX-License-Identifier: Apache-2.0
"""Every Molecule scenario, run as a user would run it, and its second check read for changes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = sorted(file.parent.name for file in (ROOT / "molecule").glob("*/molecule.yml"))
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def recaps(output: str) -> list[dict[str, int]]:
    """Host → changed tasks, one dictionary for each play recap of the output."""
    parts = output.split("PLAY RECAP")[1:]
    return [{host: int(changed) for host, changed, _, _ in RECAP.findall(part)} for part in parts]


@pytest.mark.nodes
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str) -> None:
    argv = [str(Path(sys.executable).parent / "molecule"), "test", "--scenario-name", scenario]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1450)
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, output[-8000:]
    # Recaps in the order of the sequence: … check on the bare nodes, converge, idempotence, check again …
    nodes = [recap for recap in recaps(output) if recap and "localhost" not in recap]
    first_check, converge, again, second_check = nodes[:4] if scenario_has_no_prepare(scenario) else nodes[1:5]
    assert set(first_check) == set(converge) == set(second_check)
    assert all(count == 0 for count in again.values()), again
    assert all(count == 0 for count in second_check.values()), f"check after converge predicts changes: {second_check}"


def scenario_has_no_prepare(scenario: str) -> bool:
    """Whether the first recap of nodes is the check's."""
    return not (ROOT / "molecule" / scenario / "prepare.yml").exists()
