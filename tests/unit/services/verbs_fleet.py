# SPDX-License-Identifier: Apache-2.0
"""A fleet for the verbs' playbooks: this machine is every node, with stand-ins for systemctl, journalctl and docker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]

#: A unit's state is a file; every change is a line of `calls`, with the services that the gateway sends nothing to.
SYSTEMCTL_STAND_IN = """#!/bin/sh
here=$(dirname "$(dirname "$0")")
node=$(basename "$here")
wants=$here/units/multi-user.target.wants
verb=$1; shift
case $verb in
show)
  for word; do
    case $word in -*) continue ;; esac
    state=inactive; [ -e "$here/state/$word" ] && state=$(cat "$here/state/$word")
    printf 'Id=%s\\nLoadState=loaded\\nActiveState=%s\\nNeedDaemonReload=no\\n\\n' "$word" "$state"
  done
  exit 0 ;;
esac
for unit; do :; done
case $verb in
start|restart) state=active ;;
stop) state=inactive ;;
enable) mkdir -p "$wants"; ln -sf "../$unit" "$wants/$unit"; exit 0 ;;
disable) rm -f "$wants/$unit"; exit 0 ;;
*) exit 0 ;;
esac
if [ -e "$here/broken/$unit" ] && [ $state = active ]; then
  echo failed >"$here/state/$unit"
  echo "Job for $unit failed." >&2
  exit 1
fi
echo $state >"$here/state/$unit"
away=$(grep -l '"stopped": true' "$here"/../registry/*.json 2>/dev/null | xargs -rn1 basename | tr '\\n' ' ')
echo "$node $verb $unit; away: $away" >>"$here/../calls"
"""
JOURNALCTL_STAND_IN = """#!/bin/sh
for word; do case $word in --lines=*) lines=${word#--lines=} ;; --unit=*) unit=${word#--unit=} ;; esac; done
seq 1 500 | sed "s/^/2026-11-23T17:00:00+0000 $unit: line /" | tail -n "$lines"
"""
# No container runs, so no client is connected to one.
DOCKER_STAND_IN = "#!/bin/sh\necho 'Error response from daemon: No such container' >&2\nexit 1\n"
STAND_INS = {"systemctl": SYSTEMCTL_STAND_IN, "journalctl": JOURNALCTL_STAND_IN, "docker": DOCKER_STAND_IN}


class Fleet:
    """Nodes with installed services, and a gateway whose service registry is a folder; all of it lies in `folder`."""

    def __init__(self, folder: Path, nodes: dict[str, dict[str, str]], gateway: dict[str, Any] | None = None) -> None:
        """``nodes``: for each node the model of each of its llama.cpp services, all of which serve."""
        self.folder = folder
        for node, services in nodes.items():
            for part in ("bin", "state", "units", "broken"):
                (folder / node / part).mkdir(parents=True)
            for name, text in {**STAND_INS, "python": self._python(node)}.items():
                self._program(folder / node / "bin" / name, text)
            for name, model in services.items():
                self._install(node, name, model)
        hosts: dict[str, Any] = {node: self._variables(node) for node in nodes}
        local = {"ansible_connection": "local", "ansible_become": False}
        inventory = {
            "gpu-nodes": {"hosts": hosts},
            "gateways": {"hosts": {"gateway-01": gateway or self._gateway()}},
        }
        (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": local, "children": inventory}}))
        (folder / "group_vars").symlink_to(ROOT / "group_vars")
        (folder / "registry").mkdir()
        for number, (node, services) in enumerate(nodes.items(), start=1):
            self._publish(node, f"10.0.0.{number}", services)

    def _gateway(self) -> dict[str, str]:
        # Never set up, so a change of its registry has no consequences.
        return {
            "gateway_registry_path": str(self.folder / "registry"),
            "inference_config_root": str(self.folder / "gateway-01" / "etc"),
        }

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def _python(self, node: str) -> str:
        return f'#!/bin/sh\nPATH={self.folder / node / "bin"}:$PATH exec {sys.executable} "$@"\n'

    def _variables(self, node: str) -> dict[str, str]:
        return {
            "ansible_python_interpreter": str(self.folder / node / "bin" / "python"),
            "inference_config_root": str(self.folder / node / "etc"),
            "inference_state_root": str(self.folder / node / "var"),
            "inference_models_path": str(self.folder / node / "models"),
        }

    def _install(self, node: str, name: str, model: str) -> None:
        services = self.folder / node / "etc" / "services" / name
        services.mkdir(parents=True)
        record = {"name": name, "backend": "llamacpp", "model": model, "address": "10.0.0.1", "port": 8005}
        (services / "service.json").write_text(json.dumps(record))
        unit = f"inference-{name}.service"
        units = self.folder / node / "units"
        (units / unit).write_text("[Service]\nTimeoutStopSec=150\n")
        (units / "multi-user.target.wants").mkdir(exist_ok=True)
        (units / "multi-user.target.wants" / unit).symlink_to(f"../{unit}")
        (self.folder / node / "state" / unit).write_text("active\n")

    def _publish(self, node: str, address: str, services: dict[str, str]) -> None:
        entries = [
            {"name": name, "backend": "llamacpp", "model": model, "port": 8005} for name, model in services.items()
        ]
        fragment = {"schema_version": 1, "node": node, "address": address, "services": entries}
        (self.folder / "registry" / f"{node}.json").write_text(json.dumps(fragment))

    def play(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a verb's playbook."""
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CACHE_PLUGIN": "memory",
            "ANSIBLE_NOCOLOR": "1",
        }
        units = json.dumps({"__services_unit_dir": "{{ inference_state_root | dirname }}/units"})
        argv = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.folder / "hosts.yml")]
        return subprocess.run(
            [*argv, f"playbooks/{verb}.yml", "-e", units, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    @property
    def calls(self) -> list[str]:
        """What was started and stopped, in its order, each with what the gateway sent nothing to at that moment."""
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def away(self) -> set[str]:
        """Services that the gateway sends nothing to, as node/service."""
        found = set()
        for file in (self.folder / "registry").glob("*.json"):
            fragment = json.loads(file.read_text())
            for entry in fragment["services"]:
                if entry.get("stopped"):
                    found.add(f"{fragment['node']}/{entry['name']}")
        return found

    def snapshot(self) -> dict[str, bytes]:
        """Every file of the fleet, to tell that nothing changed."""
        return {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}
