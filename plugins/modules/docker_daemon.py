#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Merge options into Docker's daemon.json and make the daemon use them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon
short_description: Merge options into Docker's daemon.json
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Merges O(options) into the configuration file of the Docker daemon. What other owners keep there stays.
  - The new file is checked by C(dockerd --validate) where that dockerd can do it.
    The old one is backed up beside it.
  - A running daemon is reloaded when only options changed that a reload takes over, and restarted otherwise.
    When that fails, the old file comes back and the daemon is restarted with it.
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  options:
    description:
      - The wanted options. Objects are merged key by key and lists get the items they lack.
      - A V(null) removes that key.
    type: dict
    required: true
  path:
    description: The configuration file; it is created when it is missing.
    type: path
    default: /etc/docker/daemon.json
  apply:
    description: Whether a running daemon is reloaded or restarted after a change.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Rotate the containers' logs and keep containers over a restart of the daemon
  fleet.inference.docker_daemon:
    options:
      log-driver: json-file
      log-opts: {max-size: 10m, max-file: "3"}
      live-restore: true
"""

RETURN = r"""
action:
  description:
    - What a running daemon needs to use the file, and got unless in check mode.
    - V(none), V(reload) or V(restart).
  type: str
  returned: success
changed_options:
  description: Top-level options that changed.
  type: list
  elements: str
  returned: success
backup_file:
  description: Copy of the file as it was.
  type: str
  returned: when an existing file was changed
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.runtime import daemon

_UNIT = "docker.service"


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _write(module: AnsibleModule, path: str, text: str) -> None:
    """Replace ``path`` in one step; a new file gets 0644, an existing one keeps its owner and mode."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".daemon.json.")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    is_new = not os.path.exists(path)
    module.atomic_move(temporary, path)
    if is_new:
        os.chmod(path, 0o644)


def _validate(module: AnsibleModule, path: str, text: str) -> None:
    dockerd = module.get_bin_path("dockerd")
    if not dockerd:
        return
    with tempfile.TemporaryDirectory() as folder:
        candidate = os.path.join(folder, "daemon.json")
        with open(candidate, "w", encoding="utf-8") as stream:
            stream.write(text)
        rc, out, err = module.run_command([dockerd, "--validate", f"--config-file={candidate}"])
    # Docker before 23.0 can't validate; it says so and nothing else.
    if rc != 0 and "unknown flag" not in err:
        lines = [line.strip() for line in (err or out).splitlines() if line.strip()]
        reason = lines[-1].replace(candidate, path) if lines else f"exit status {rc}"
        module.fail_json(
            msg=f"{path} was not changed because dockerd refuses the wanted options ({reason}); "
            "correct container_runtime_daemon_options"
        )


def _apply(module: AnsibleModule, action: str) -> str | None:
    """Make a running daemon use the file; return why that failed, or ``None``."""
    systemctl = module.get_bin_path("systemctl")
    if action == "none" or not systemctl or module.run_command([systemctl, "is-active", "--quiet", _UNIT])[0] != 0:
        return None
    # Earlier attempts in short order must not count against this one.
    module.run_command([systemctl, "reset-failed", _UNIT])
    rc, _out, err = module.run_command([systemctl, action, _UNIT])
    if rc == 0:
        return None
    journal = module.run_command(
        ["journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=20", f"--unit={_UNIT}"]
    )
    reasons = [line.strip() for line in journal[1].splitlines() if line.startswith(("failed to ", "unable to "))]
    return reasons[-1] if reasons else " ".join(err.split()) or f"systemctl {action} ended with {rc}"


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "options": {"type": "dict", "required": True},
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "apply": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    try:
        before_text = _read(path)
        before = daemon.parse(before_text)
    except (daemon.DaemonConfigError, OSError, UnicodeDecodeError) as error:
        module.fail_json(msg=f"{path} {error}, and nothing was changed; correct that file or move it away")
    after = daemon.merge(before, module.params["options"])
    result = {
        "changed": after != before or before_text is None,
        "action": daemon.needed_action(before, after),
        "changed_options": daemon.changed_keys(before, after),
    }
    if not result["changed"]:
        module.exit_json(**result)
    text = daemon.render(after)
    result["diff"] = {
        "before_header": path,
        "after_header": path,
        "before": daemon.render(before) if before_text is not None else "",
        "after": text,
    }
    _validate(module, path, text)
    if module.check_mode:
        module.exit_json(**result)
    if before_text is not None:
        result["backup_file"] = module.backup_local(path)
    _write(module, path, text)
    problem = _apply(module, result["action"]) if module.params["apply"] else None
    if problem:
        if before_text is None:
            os.unlink(path)
        else:
            _write(module, path, before_text)
            os.unlink(result["backup_file"])
        again = _apply_old(module)
        module.fail_json(
            msg=f"{path} is as it was because Docker didn't {result['action']} with the wanted options ({problem}); "
            f"correct container_runtime_daemon_options{again}"
        )
    module.exit_json(**result)


def _apply_old(module: AnsibleModule) -> str:
    """Restart the daemon with the old file; return a clause for the message when even that fails."""
    systemctl = module.get_bin_path("systemctl", required=True)
    module.run_command([systemctl, "reset-failed", _UNIT])
    rc = module.run_command([systemctl, "restart", _UNIT])[0]
    return "" if rc == 0 else f" and see to {_UNIT}, which doesn't start with the old file either"


if __name__ == "__main__":
    main()
