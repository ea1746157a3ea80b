# SPDX-License-Identifier: Apache-2.0
"""The filters ``contains`` and ``openpgp_fingerprints``."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.inference.plugins.filter.contains import contains
from ansible_collections.fleet.inference.plugins.filter.openpgp_fingerprints import openpgp_fingerprints


@pytest.mark.parametrize(
    ("there", "wanted", "answer"),
    [
        ({"a": 1, "b": {"c": [1, 2, 3]}}, {"b": {"c": [3, 1]}}, True),
        ({"a": 1}, {}, True),
        (None, {}, True),
        (None, {"a": 1}, False),
        ({"a": None}, {"a": None}, True),
        ({}, {"a": None}, True),
        ({"a": 1}, {"a": None}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": True}, {"a": 1}, False),
        ({"l": [{"x": 1, "y": 2}]}, {"l": [{"x": 1}]}, True),
        ({"l": ["a"]}, {"l": ["a", "b"]}, False),
        (None, [], True),
        (["docker.io"], ["docker.io", "runc"], False),
        ("text", {"a": 1}, False),
    ],
)
def test_contains(there: Any, wanted: Any, answer: bool) -> None:
    assert contains(there, wanted) is answer


def _armoured(*packets: tuple[int, bytes]) -> str:
    data = b"".join(bytes([0x80 | tag << 2 | 1]) + len(body).to_bytes(2, "big") + body for tag, body in packets)
    block = base64.b64encode(data).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: x\n\n{block}\n=AbCd\n-----END PGP PUBLIC KEY BLOCK-----\n"


def test_fingerprints_of_primary_keys_only() -> None:
    key, subkey = b"\x04\x58\xad\xa7\x9a\x01" + b"k" * 300, b"\x04" + b"s" * 40
    expected = hashlib.sha1(b"\x99" + len(key).to_bytes(2, "big") + key).hexdigest().upper()
    assert openpgp_fingerprints(_armoured((6, key), (13, b"Name"), (14, subkey))) == [expected]
    assert len(openpgp_fingerprints(_armoured((6, key)) + _armoured((6, subkey)))) == 2


@pytest.mark.parametrize("text", ["", "<html>", _armoured((6, b"\x06abc")), _armoured((6, b"\x04abc"))[:60]])
def test_no_key(text: str) -> None:
    with pytest.raises(AnsibleFilterError, match="key file"):
        openpgp_fingerprints(text)
