# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of the OpenPGP keys in a key file, without any tool."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: openpgp_fingerprints
short_description: Fingerprints of the primary keys in an OpenPGP key file
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Reads an ASCII-armoured OpenPGP public key file and returns the fingerprint of every primary key in it,
    so that a repository's key is compared with the expected one before it is trusted. No C(gpg) is needed.
  - Version 4 keys (RFC 4880, section 12.2), the only kind that package repositories use.
options:
  _input:
    description: Text of the key file.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse a key that isn't the expected one
  ansible.builtin.assert:
    that: key | fleet.inference.openpgp_fingerprints == ['9DC858229FC7DD38854AE2D88D81803C0EBFCD88']
"""

RETURN = r"""
_value:
  description: Fingerprints, 40 upper-case hexadecimal digits each, in the order of the file.
  type: list
  elements: str
"""

_PUBLIC_KEY_PACKET = 6


def _blocks(text: str) -> Iterator[bytes]:
    """Yield the binary content of every armoured block (RFC 4880, section 6.2)."""
    body: list[str] | None = None
    for line in (raw.strip() for raw in text.splitlines()):
        if line.startswith("-----BEGIN PGP PUBLIC KEY BLOCK"):
            body = []
        elif line.startswith("-----END PGP PUBLIC KEY BLOCK") and body is not None:
            yield base64.b64decode("".join(body), validate=True)
            body = None
        elif body is not None and line and ":" not in line and not line.startswith("="):
            body.append(line)


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and body of every packet (RFC 4880, section 4.2)."""
    position = 0
    while position < len(data):
        head = data[position]
        position += 1
        if not head & 0x80:
            raise ValueError("no OpenPGP packet")
        if head & 0x40:
            tag, first = head & 0x3F, data[position]
            if first < 192:
                length, position = first, position + 1
            elif first < 224:
                length, position = ((first - 192) << 8) + data[position + 1] + 192, position + 2
            elif first == 255:
                length, position = int.from_bytes(data[position + 1 : position + 5], "big"), position + 5
            else:
                raise ValueError("a packet of partial lengths")
        else:
            tag, kind = (head & 0x3C) >> 2, head & 0x03
            if kind == 3:
                raise ValueError("a packet of indeterminate length")
            size = 1 << kind
            length, position = int.from_bytes(data[position : position + size], "big"), position + size
        if position + length > len(data):
            raise ValueError("it ends in the middle of a packet")
        yield tag, data[position : position + length]
        position += length


def openpgp_fingerprints(text: str) -> list[str]:
    """Return the fingerprints of the primary keys in the armoured ``text``; raises ``AnsibleFilterError``."""
    try:
        found = []
        for block in _blocks(str(text)):
            for tag, body in _packets(block):
                if tag != _PUBLIC_KEY_PACKET:
                    continue
                if body[:1] != b"\x04":
                    raise ValueError("a key of another version than 4")
                # SHA-1 is what defines a version 4 fingerprint.
                framed = b"\x99" + len(body).to_bytes(2, "big") + body
                found.append(hashlib.sha1(framed, usedforsecurity=False).hexdigest().upper())
    except (ValueError, IndexError, binascii.Error) as error:
        raise AnsibleFilterError(f"the key file is no readable OpenPGP public key: {error}") from error
    if not found:
        raise AnsibleFilterError("the key file has no OpenPGP public key block")
    return found


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"openpgp_fingerprints": openpgp_fingerprints}
