# SPDX-License-Identifier: Apache-2.0
"""Every role's defaults, argument specification and README say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir())


def _defaults(role: str) -> dict[str, Any]:
    file = ROOT / "roles" / role / "defaults" / "main.yml"
    # Ansible's own loader knows !vault and !unsafe.
    return dict(DataLoader().load_from_file(str(file)) or {}) if file.exists() else {}


def _entry_points(role: str) -> dict[str, dict[str, Any]]:
    text = (ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["argument_specs"]


def _options(role: str) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    for entry_point in _entry_points(role).values():
        options.update(entry_point.get("options") or {})
    return options


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specification_agree(role: str) -> None:
    defaults = _defaults(role)
    options = _options(role)
    own = {name: spec for name, spec in options.items() if name.startswith(f"{role}_")}
    without_default = {name for name, spec in own.items() if "default" not in spec}
    assert set(defaults) <= set(own), "defaults/main.yml has variables that meta/argument_specs.yml lacks"
    assert set(own) - set(defaults) <= without_default, "a specification's default is missing in defaults/main.yml"
    assert {name: own[name].get("default") for name in defaults} == defaults


@pytest.mark.parametrize("role", ROLES)
def test_specification_is_complete(role: str) -> None:
    for entry_point in _entry_points(role).values():
        assert entry_point.get("short_description")
        for name, spec in (entry_point.get("options") or {}).items():
            assert spec.get("description"), f"{name} has no description"
            assert spec.get("type"), f"{name} has no type"
            assert name.startswith((f"{role}_", "inference_")), f"{name} doesn't carry the role's name"


@pytest.mark.parametrize("role", ROLES)
def test_readme_names_every_variable(role: str) -> None:
    readme = (ROOT / "roles" / role / "README.md").read_text(encoding="utf-8")
    assert [name for name in _options(role) if f"`{name}`" not in readme] == []


def test_fleet_variables_agree_with_group_vars() -> None:
    """The fleet-wide variables that group_vars/all/main.yml sets are known, and have their documented defaults."""
    file = ROOT / "group_vars" / "all" / "main.yml"
    if not file.exists():
        pytest.skip("group_vars/all/main.yml is not there")
    values = DataLoader().load_from_file(str(file)) or {}
    options = _options("preflight")
    assert [name for name in values if name.startswith("inference_") and name not in options] == []
