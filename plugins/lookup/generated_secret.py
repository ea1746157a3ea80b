# SPDX-License-Identifier: Apache-2.0
"""A secret that is made once, on the controller, and read from its file afterwards."""

from __future__ import annotations

import os
import secrets
import string
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = r"""
name: generated_secret
short_description: Read a secret from a file on the controller, and make it the first time
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Returns the text of a file. When there is no such file, makes a random secret of letters and digits and writes it
    there in one step, mode 0600, in a directory of mode 0700, so that two runs at the same time agree on one secret.
  - In check mode nothing is written; the value returned then stands for the one that a real run would make.
  - Never prints the secret. Use it where the value goes into an option that is not logged.
options:
  _terms:
    description: The file's path.
    required: true
    type: list
    elements: path
  prefix:
    description: What the secret begins with.
    type: str
    default: ""
  length:
    description: How many random letters and digits follow the prefix.
    type: int
    default: 48
"""

EXAMPLES = r"""
- name: Write a key into a file on a gateway
  ansible.builtin.copy:
    content: "{{ lookup('fleet.inference.generated_secret', '.secrets/gateway_master_key', prefix='sk-') }}"
    dest: /etc/inference-fleet/key
    mode: "0600"
  no_log: true
"""

RETURN = r"""
_raw:
  description: The secrets, one for each path.
  type: list
  elements: str
"""


def read_secret(path: Path) -> str:
    """Return a secret's text; a file that others can read is closed to them first.

    :raises AnsibleError: one sentence when the file is empty or can not be read.
    """
    try:
        if path.is_file() and path.stat().st_mode & 0o077:
            path.chmod(0o600)
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise AnsibleError(
            f"{path} can not be read ({reason}); make it a text file of the user who runs Ansible."
        ) from None
    if not value:
        raise AnsibleError(f"{path} is empty; delete it to have a new secret made, or write the secret into it.")
    return value


def make_secret(path: Path, value: str) -> None:
    """Create the file with this value unless somebody else was first; never leaves a half-written file.

    :raises AnsibleError: one sentence when the directory can not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                handle.write(value + "\n")
            # A hard link fails when the name is taken: the first of two runs wins, the other reads its secret.
            os.link(temporary, path)
        except FileExistsError:
            return
        finally:
            temporary.unlink()
    except OSError as error:
        raise AnsibleError(
            f"{path} can not be made ({error.strerror}); give the user who runs Ansible a directory to write there."
        ) from None


def secret(path: Path, prefix: str = "", length: int = 48, check_mode: bool = False) -> str:
    """Return the secret of a file, made first when there is none.

    :param length: random letters and digits after the prefix.
    :param check_mode: write nothing; a stand-in is returned when there is no file.
    :raises AnsibleError: one sentence naming the file and the remedy.
    """
    try:
        there = path.exists()
    except OSError as error:
        raise AnsibleError(f"{path} can not be read ({error.strerror}); give another path.") from None
    if there:
        return read_secret(path)
    if check_mode:
        return f"{prefix}made-by-the-first-real-run"
    alphabet = string.ascii_letters + string.digits
    make_secret(path, prefix + "".join(secrets.choice(alphabet) for _ in range(length)))
    return read_secret(path)


class LookupModule(LookupBase):
    """The lookup ``fleet.inference.generated_secret``."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return one secret a path."""
        self.set_options(var_options=variables, direct=kwargs)
        check_mode = bool((variables or {}).get("ansible_check_mode", False))
        return [
            secret(
                Path(os.path.expandvars(term)).expanduser(),
                self.get_option("prefix"),
                self.get_option("length"),
                check_mode,
            )
            for term in terms
        ]
