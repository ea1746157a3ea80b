# SPDX-License-Identifier: Apache-2.0
"""The parts of the local nodes that need no node: package sources and inventories."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_nodes.apt_sources import debian_sources
from local_nodes.engine_images import all_recipes, images_of_inventory
from local_nodes.nodes import Node, nodes_of_inventory
from local_nodes.recipes import DEFAULT
from local_nodes.recipes.base import Recipe
from local_nodes.shell import LocalNodesError

DEB822 = """\
Types: deb
# a note
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: trixie
"""


def apt_folder(tmp_path: Path, *, one_line: str = "", deb822: str = "") -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(one_line)
    (tmp_path / "sources.list.d" / "debian.sources").write_text(deb822)
    return tmp_path


def test_sources_of_another_release_use_this_machines_mirrors(tmp_path: Path) -> None:
    assert debian_sources("trixie", apt_folder(tmp_path, deb822=DEB822)) == [
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/security trixie-security main",
    ]


def test_a_rolling_suite_has_no_updates(tmp_path: Path) -> None:
    lines = "deb [signed-by=/x.gpg] http://mirror.example/debian trixie main contrib\n# deb http://no.example x main\n"
    assert debian_sources("forky", apt_folder(tmp_path, one_line=lines)) == [
        "deb http://mirror.example/debian forky main"
    ]


def test_a_machine_without_debian_sources_leaves_the_choice_to_mmdebstrap(tmp_path: Path) -> None:
    assert (
        debian_sources("trixie", apt_folder(tmp_path, one_line="deb http://ubuntu.example/ubuntu noble main\n")) == []
    )


def test_nodes_of_an_inventory_take_layer_and_release_from_host_group_or_all(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yml"
    file.write_text(
        """
all:
  vars: {local_node_layer: runtime}
  children:
    gateways:
      hosts:
        gw: {ansible_host: 10.0.0.1, local_node_layer: bare}
    gpu-nodes:
      vars: {local_node_release: bookworm}
      hosts:
        n1: {ansible_host: 10.0.0.2}
        elsewhere: {}
"""
    )
    assert nodes_of_inventory(file) == [
        Node("gw", "10.0.0.1", "bare", "trixie"),
        Node("n1", "10.0.0.2", "runtime", "bookworm"),
    ]


def test_an_inventory_without_addresses_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yml"
    file.write_text("all: {hosts: {a: {}}}\n")
    with pytest.raises(LocalNodesError, match="no host has ansible_host"):
        nodes_of_inventory(file)


def test_an_inventory_names_the_images_that_its_nodes_pull(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yml"
    file.write_text("all: {vars: {local_node_images: [ollama]}}")
    assert images_of_inventory(file) == ["ollama"]
    file.write_text("all: {children: {}}")
    assert images_of_inventory(file) == list(DEFAULT)


def test_an_image_is_made_anew_when_what_it_is_made_from_changes(tmp_path: Path) -> None:
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "lock").write_text("1")
    recipe = Recipe("engine", "ghcr.io/maker/engine", "v1", lambda image, temporary: None, (folder,))
    assert (recipe.reference, recipe.local_path) == ("ghcr.io/maker/engine:v1", "maker/engine")
    first = recipe.key()
    (folder / "lock").write_text("2")
    assert recipe.key() != first


def test_the_default_images_have_recipes() -> None:
    assert set(DEFAULT) <= set(all_recipes())
