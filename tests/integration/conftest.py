# SPDX-License-Identifier: Apache-2.0
"""A real fleet for the integration tests: a gateway and two nodes, converged once with site.yml."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fleet_under_test import SET, Fleet
from local_nodes import engine_images, host, model_hub, nodes


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A converged fleet. Tests that change it put it back.

    With KEEP_NODES set, nodes of an earlier session are used again and stay, which saves time while writing a test.
    """
    host.install_packages()
    keep = bool(os.environ.get("KEEP_NODES"))
    if not keep:
        nodes.down(SET)
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    nodes.up(SET, nodes.nodes_of_inventory(made.inventory))
    engine_images.ensure_engine_images(engine_images.images_of_inventory(made.inventory))
    model_hub.ensure_model_hub(model_hub.models_of_inventory(made.inventory) or [])
    made.converge()
    yield made
    if not keep:
        nodes.down(SET)
