# SPDX-License-Identifier: Apache-2.0
"""Whether a service was started with the files that lie on its node."""

from __future__ import annotations

import json

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.services.applied import is_as_started, read_applied
from ansible_collections.fleet.inference.plugins.module_utils.services.files import FileState, read_file


def as_started(node) -> bool:
    return is_as_started(str(node.directory), str(node.unit))


def test_a_run_that_was_cut_off_before_the_restart_is_seen(node, options):
    assert not as_started(node)
    node.apply(options())
    assert as_started(node)
    env = node.directory / "service.env"
    env.write_text(env.read_text().replace("4096", "8192"))
    assert not as_started(node)
    node.apply(options(env={"LLAMA_ARG_CTX_SIZE": "8192"}))
    assert as_started(node)


@pytest.mark.parametrize("name", ["readiness.json", "service.json"])
def test_what_a_start_does_not_read_does_not_count(node, options, name):
    node.apply(options())
    (node.directory / name).write_text("{}")
    assert as_started(node)


def test_a_failed_change_that_was_put_back_counts_as_started(node, options):
    node.apply(options())
    node.healthy = lambda: "8192" not in (node.directory / "service.env").read_text()
    with pytest.raises(Exception, match="the previous version is serving again"):
        node.apply(options(env={"LLAMA_ARG_CTX_SIZE": "8192"}))
    assert as_started(node)


def test_start_by_name_alone_counts(node, options):
    node.apply(options())
    (node.directory / "extra.json").write_text('{"by": "hand"}\n')
    assert not as_started(node)
    node.apply({key: value for key, value in options(state="restarted").items() if key in _BY_NAME})
    assert as_started(node)


_BY_NAME = ("name", "state", "config_root", "state_root", "unit_dir")


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"fingerprint": 1})])
def test_a_broken_record_is_none(node, options, text):
    node.apply(options())
    (node.directory / "applied.json").write_text(text)
    assert not as_started(node)
    assert read_applied(read_file(str(node.directory / "applied.json"))) is None
    assert read_applied(FileState(b"\xff", 0o600, 0, 0)) is None
