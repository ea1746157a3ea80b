#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: container_service
short_description: Own one containerised inference service on a node
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Owns the whole of one service, namely its image, its environment and config files, its systemd unit, its running
    state and its readiness.
  - The service counts as started when it answers, that is when its health path answers, its model is listed and one
    token was generated. The unit itself waits for this, so C(systemctl start) does too.
  - When a new version does not become ready, the earlier image, files and unit are put back and started again, and the
    module fails with the last lines of the journal. A service that was new is removed again.
  - Its files are in C(/etc/inference-fleet/services/<name>), its unit is
    C(/etc/systemd/system/inference-<name>.service).
  - All services of a machine belong to C(inference-fleet.target), which starts them at boot; C(systemctl stop),
    C(start) and C(restart) of it reach all that are enabled. It goes with the last service.
  - A service that ends is started again after 2, 4, 8 and 15 seconds with systemd 254 or later, after 5 seconds each
    time with an earlier one; the fifth start within the start limit is the last one.
  - Without O(image) only the running state of an installed service is managed.
requirements:
  - Python 3.8 or later, systemd 247 or later and Docker Engine 20.10 or later on the node
attributes:
  check_mode:
    description: Can run in check mode and predict what would be done without doing it.
    support: full
    details:
      - Works on a node without Docker. Whether O(pull=always) would bring another image is not predicted.
  diff_mode:
    description: Shows all files and the state of the service before and after, with secrets masked.
    support: full
  idempotent:
    description: A second run with the same options changes nothing.
    support: partial
    details:
      - With O(state=restarted) every run restarts the service.
options:
  name:
    description: Name of the service; the unit and the container are called C(inference-<name>).
    type: str
    required: true
  state:
    description:
      - V(started) means running, ready and enabled at boot. V(stopped) means installed, not running and not enabled.
      - V(restarted) is V(started) with a restart in every run. V(absent) removes all but the image and the data.
    type: str
    choices: [started, stopped, restarted, absent]
    default: started
  engine:
    description: Container engine that runs the service.
    type: str
    choices: [docker]
    default: docker
  description:
    description: One line for the unit.
    type: str
  backend:
    description: Engine name for C(service.json), such as V(llamacpp).
    type: str
  model:
    description: Name of the served model for C(service.json).
    type: str
  models:
    description: Names of all served models for C(service.json), O(model) first, where there are several.
    type: list
    elements: str
    default: []
  units:
    description:
      - Identities of the GPUs, MIG instances or partitions that the service runs on, none for the host's memory alone,
        for C(service.json). By them the next plan leaves the service where it is.
      - Services with one of them in common start one after the other, each when the one before it is ready.
      - Other identities in their place alone do not restart the service.
    type: list
    elements: str
  image:
    description: Image with tag or digest.
    type: str
  pull:
    description: When to pull the image from its image registry.
    type: str
    choices: [missing, always, never]
    default: missing
  command:
    description: Arguments for the image's entry point. Never put a secret here.
    type: list
    elements: str
    default: []
  env:
    description: Environment of the container.
    type: dict
    default: {}
  secret_env:
    description: Environment of the container whose values no output shows. It is kept in a file that only root reads.
    type: dict
    default: {}
  files:
    description: Config files, kept beside the environment file and mounted read-only.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: File name.
        type: str
        required: true
      content:
        description: Text of the file.
        type: str
        required: true
      mode:
        description: Permission bits as octal digits.
        type: str
        default: "0640"
      owner_uid:
        description: Numeric owner, root when left out. The container's user must be able to read the file.
        type: int
      secret:
        description: Whether the content is masked in every output.
        type: bool
        default: false
      target:
        description: Path in the container.
        type: str
        required: true
  mounts:
    description: Paths of the node inside the container.
    type: list
    elements: dict
    default: []
    suboptions:
      source:
        description: Absolute path on the node.
        type: str
        required: true
      target:
        description: Absolute path in the container.
        type: str
        required: true
      read_only:
        description: Whether the container may only read.
        type: bool
        default: true
      owner:
        description:
          - Numeric user and group, such as V(10001:10001), for a folder that the container may write.
          - The folder is made if it is missing (mode 0700), and given to them with all that is in it. It outlives the
            service.
        type: str
  volumes:
    description: Named volumes. They outlive the service.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the volume.
        type: str
        required: true
      target:
        description: Absolute path in the container.
        type: str
        required: true
  tmpfs:
    description: Paths in the container that are in memory, each with optional mount options after a colon.
    type: list
    elements: str
    default: []
  ports:
    description: Published TCP ports.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: Address of the node on which the port is opened, every address when left out.
        type: str
      host_port:
        description: Port on the node.
        type: int
        required: true
      container_port:
        description: Port in the container.
        type: int
        required: true
  devices:
    description:
      - CDI names or device paths.
      - Where the node has C(gpu-ready.service), a service with devices for CUDA or ROCm requires it, so that it does
        not start without its GPUs. That alone does not restart the service.
    type: list
    elements: str
    default: []
  groups:
    description: Numeric groups of the container's process, for instance of the node's group C(render).
    type: list
    elements: int
    default: []
  user:
    description: Numeric user and group of the container's process, such as V(10001:10001).
    type: str
  read_only:
    description: Whether the root file system of the container is read-only.
    type: bool
    default: true
  network:
    description: Network of the engine, its default one when left out.
    type: str
  extra_hosts:
    description: Further host names in the container, each as C(name:address).
    type: list
    elements: str
    default: []
  shm_size_bytes:
    description: Size of F(/dev/shm).
    type: int
  memory_limit_bytes:
    description: Memory limit, set only where the node has the cgroup controller for it.
    type: int
  pids_limit:
    description: Limit of processes, set only where the node has the cgroup controller for it.
    type: int
  stop_timeout_seconds:
    description: How long the service may take to stop before it is killed.
    type: int
    default: 30
  idle_timeout_seconds:
    description:
      - How long a stop waits until no client is connected, before it tells the service to end. For engines that cut
        their requests when they are told; V(0) does not wait.
    type: int
    default: 0
  after:
    description: Units after which the service starts.
    type: list
    elements: str
    default: []
  requires:
    description: Units without which the service does not run.
    type: list
    elements: str
    default: []
  start_after:
    description:
      - Units after which the service starts when they are to start as well, as at boot.
      - A change here alone does not restart the service.
    type: list
    elements: str
    default: []
  readiness:
    description:
      - When the service counts as ready.
      - A change here alone does not restart the service, unless it changes the deadline, which is a part of the unit.
    type: dict
    suboptions:
      host:
        description: Address that is asked.
        type: str
        required: true
      port:
        description: Port that is asked.
        type: int
        required: true
      timeout_seconds:
        description: Deadline from the start of the container.
        type: float
        required: true
      scheme:
        description: Protocol.
        type: str
        choices: [http, https]
        default: http
      health_path:
        description: Path that tells the health.
        type: str
        default: /health
      health_status:
        description: Status with which O(readiness.health_path) answers when all is well.
        type: int
        default: 200
      models_path:
        description: Path that lists the models. Not asked when left out.
        type: str
      model:
        description: Model that must be listed, any when left out.
        type: str
      further_models:
        description: Models that must be listed beside O(readiness.model).
        type: list
        elements: str
        default: []
      further_answer:
        description:
          - Whether O(readiness.further_models) too must answer O(readiness.generate_path), with their names as C(model)
            of O(readiness.generate_body), and be in GPU memory as O(readiness.gpu_path) says.
        type: bool
        default: false
      generate_path:
        description: Path that generates text. Not asked when left out.
        type: str
      generate_body:
        description: JSON body for O(readiness.generate_path), which asks for one token.
        type: dict
      gpu_path:
        description:
          - Path that lists the loaded models with C(size) and C(size_vram), as Ollama's C(/api/ps).
          - Not asked when left out.
          - A model that is not in GPU memory is an error at once.
        type: str
      gpu_whole:
        description: Whether all of the model must be in GPU memory, and not only a part of it.
        type: bool
        default: true
      bearer_env:
        description: Name of the variable in O(env) or O(secret_env) that holds the key for the requests.
        type: str
      interval_seconds:
        description: Pause between two rounds.
        type: float
        default: 0.5
      request_timeout_seconds:
        description: Limit of one request.
        type: float
        default: 30.0
  config_root:
    description: Folder of the configuration on the node.
    type: path
    default: /etc/inference-fleet
  state_root:
    description: Folder of models, caches and state on the node.
    type: path
    default: /var/lib/inference-fleet
  unit_dir:
    description: Folder of systemd units on the node.
    type: path
    default: /etc/systemd/system
"""

EXAMPLES = r"""
- name: Serve a small model with llama.cpp
  fleet.inference.container_service:
    name: llamacpp
    backend: llamacpp
    model: smollm2-135m-instruct
    image: ghcr.io/ggml-org/llama.cpp:server-b11669
    env:
      LLAMA_ARG_MODEL: /models/SmolLM2-135M-Instruct.Q4_1.gguf
      LLAMA_ARG_ALIAS: smollm2-135m-instruct
    secret_env:
      LLAMA_API_KEY: "{{ vault_llamacpp_key }}"
    mounts:
      - source: /var/lib/inference-fleet/models
        target: /models
    tmpfs: [/tmp]
    user: "10001:10001"
    ports:
      - address: 10.0.0.11
        host_port: 8005
        container_port: 8080
    readiness:
      host: 10.0.0.11
      port: 8005
      models_path: /v1/models
      model: smollm2-135m-instruct
      generate_path: /v1/chat/completions
      generate_body:
        model: smollm2-135m-instruct
        messages: [{role: user, content: Hi}]
        max_tokens: 1
      bearer_env: LLAMA_API_KEY
      timeout_seconds: 120

- name: Stop it, also at boot
  fleet.inference.container_service:
    name: llamacpp
    state: stopped

- name: Remove it, but not its image and its models
  fleet.inference.container_service:
    name: llamacpp
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, in this order.
  returned: always
  type: list
  elements: str
  sample: [write /etc/systemd/system/inference-llamacpp.service, daemon-reload, restart inference-llamacpp.service]
image_id:
  description: Id of the service's image on the node, null when it is not known yet.
  returned: success
  type: str
ready_seconds:
  description: Seconds until the service was ready, a stop of the old version included; null when nothing was started.
  returned: success
  type: float
unit:
  description: Name of the systemd unit.
  returned: always
  type: str
  sample: inference-llamacpp.service
journal:
  description: Last lines of the unit's journal since the failed start.
  returned: failure
  type: list
  elements: str
restored:
  description: What was put back after a failure; empty when nothing had been changed.
  returned: failure
  type: str
  sample: the previous version is serving again
"""

import platform

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.services.engine import DockerEngine, cgroup_controllers
from ansible_collections.fleet.inference.plugins.module_utils.services.manager import ServiceError, ServiceManager
from ansible_collections.fleet.inference.plugins.module_utils.services.runner import Runner
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import ServiceSpec, SpecError
from ansible_collections.fleet.inference.plugins.module_utils.services.systemd import Systemd

MOUNT = {
    "source": {"type": "str", "required": True},
    "target": {"type": "str", "required": True},
    "read_only": {"type": "bool", "default": True},
    "owner": {"type": "str"},
}
VOLUME = {"name": {"type": "str", "required": True}, "target": {"type": "str", "required": True}}
PORT = {
    "address": {"type": "str"},
    "host_port": {"type": "int", "required": True},
    "container_port": {"type": "int", "required": True},
}
CONFIG_FILE = {
    "name": {"type": "str", "required": True},
    "content": {"type": "str", "required": True},
    "mode": {"type": "str", "default": "0640"},
    "owner_uid": {"type": "int"},
    "secret": {"type": "bool", "default": False, "no_log": False},
    "target": {"type": "str", "required": True},
}
READINESS = {
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "required": True},
    "timeout_seconds": {"type": "float", "required": True},
    "scheme": {"type": "str", "choices": ["http", "https"], "default": "http"},
    "health_path": {"type": "str", "default": "/health"},
    "health_status": {"type": "int", "default": 200},
    "models_path": {"type": "str"},
    "model": {"type": "str"},
    "further_models": {"type": "list", "elements": "str", "default": []},
    "further_answer": {"type": "bool", "default": False},
    "generate_path": {"type": "str"},
    "generate_body": {"type": "dict"},
    "gpu_path": {"type": "str"},
    "gpu_whole": {"type": "bool", "default": True},
    "bearer_env": {"type": "str"},
    "interval_seconds": {"type": "float", "default": 0.5},
    "request_timeout_seconds": {"type": "float", "default": 30.0},
}


def strings():
    return {"type": "list", "elements": "str", "default": []}


def entries(options):
    return {"type": "list", "elements": "dict", "default": [], "options": options}


ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["started", "stopped", "restarted", "absent"], "default": "started"},
    "engine": {"type": "str", "choices": ["docker"], "default": "docker"},
    "description": {"type": "str"},
    "backend": {"type": "str"},
    "model": {"type": "str"},
    "models": strings(),
    "units": {"type": "list", "elements": "str"},
    "image": {"type": "str"},
    "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
    "command": strings(),
    "env": {"type": "dict", "default": {}},
    "secret_env": {"type": "dict", "default": {}, "no_log": True},
    # no_log keeps secret contents out of the node's log; main narrows it to them for the result.
    "files": dict(entries(CONFIG_FILE), no_log=True),
    "mounts": entries(MOUNT),
    "volumes": entries(VOLUME),
    "tmpfs": strings(),
    "ports": entries(PORT),
    "devices": strings(),
    "groups": {"type": "list", "elements": "int", "default": []},
    "user": {"type": "str"},
    "read_only": {"type": "bool", "default": True},
    "network": {"type": "str"},
    "extra_hosts": strings(),
    "shm_size_bytes": {"type": "int"},
    "memory_limit_bytes": {"type": "int"},
    "pids_limit": {"type": "int"},
    "stop_timeout_seconds": {"type": "int", "default": 30},
    "idle_timeout_seconds": {"type": "int", "default": 0},
    "after": strings(),
    "requires": strings(),
    "start_after": strings(),
    "readiness": {"type": "dict", "options": READINESS},
    "config_root": {"type": "path", "default": "/etc/inference-fleet"},
    "state_root": {"type": "path", "default": "/var/lib/inference-fleet"},
    "unit_dir": {"type": "path", "default": "/etc/systemd/system"},
}


def main():
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    secrets = {str(value) for value in module.params["secret_env"].values()}
    secrets.update(entry["content"] for entry in module.params["files"] if entry["secret"])
    module.no_log_values.clear()
    module.no_log_values.update(value for value in secrets if value)
    host = platform.node()
    unit = f"inference-{module.params['name']}.service"
    try:
        spec = ServiceSpec.from_params(module.params)
        runner = Runner()
        engine = DockerEngine(runner, cgroup_controllers())
        manager = ServiceManager(spec, engine, Systemd(runner), host, check_mode=module.check_mode)
        result = manager.run()
    except SpecError as error:
        module.fail_json(msg=f"{host}: service {module.params['name']}: {error}", unit=unit, actions=[])
    except ServiceError as error:
        lines = "".join(f"\n  {line}" for line in error.journal)
        module.fail_json(
            msg=error.sentence + (f"\nLast lines of the journal:{lines}" if lines else ""),
            unit=unit,
            actions=manager.result.actions,
            journal=error.journal,
            restored=error.restored,
        )
    module.exit_json(
        changed=result.changed,
        actions=result.actions,
        image_id=result.image_id,
        ready_seconds=result.ready_seconds,
        unit=unit,
        diff=result.diff,
    )


if __name__ == "__main__":
    main()
