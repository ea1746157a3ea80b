# SPDX-License-Identifier: Apache-2.0
"""A stand-in of the Hugging Face Hub, the Ollama registry and a file server, where the real ones can't be reached.

What it has is named here: real models that are made of Python packages, and small files that are as good where only
their way to a node is tested. A container of the nodes' network serves it. Small files come from a seed, so that they
are the same everywhere and scenarios may name their checksums.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from .converted_model import ensure_converted_model
from .gemma import ensure_gemma
from .host import ensure_network, network_options, podman
from .registry import usr_image
from .settings import PREFIX, PROJECT_ROOT, cache_dir, model_hub_address
from .shell import LocalNodesError, alone, say, step

NAME = f"{PREFIX}-model-hub"
PROGRAM = PROJECT_ROOT / "molecule" / "shared" / "images" / "model_hub" / "model_hub_stand_in.py"
#: Changes with what this module makes of the same names.
FORMAT = "1"
#: Media types of Ollama's layers.
_CONFIGURATION = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.ollama.image."
_GEMMA_TEMPLATE = """\
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if or (eq .Role "user") (eq .Role "system") }}<start_of_turn>user
{{ .Content }}<end_of_turn>
{{ else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}
{{- if $last }}<start_of_turn>model
{{ end }}
{{- end }}"""


@dataclasses.dataclass(frozen=True)
class Offer:
    """What the hub has of one model.

    Attributes:
        repositories: ``org/name`` → folder of its files.
        gated: Those of them whose licence must be accepted; name → token that may read them.
        library: ``library/name:tag`` → media type and file of the configuration and of each layer.
        downloads: Path → file.
    """

    repositories: dict[str, Path] = dataclasses.field(default_factory=dict)
    gated: dict[str, str] = dataclasses.field(default_factory=dict)
    library: dict[str, list[tuple[str, Path]]] = dataclasses.field(default_factory=dict)
    downloads: dict[str, Path] = dataclasses.field(default_factory=dict)


def commit(repository: str) -> str:
    """The commit of a repository's one version here."""
    return hashlib.sha1(f"stand-in {repository}".encode(), usedforsecurity=False).hexdigest()


def _write(path: str, content: bytes | str) -> Path:
    """Write a small file into the cache; returns where it is."""
    file = cache_dir() / "model-hub" / FORMAT / path
    data = content.encode() if isinstance(content, str) else content
    if not (file.exists() and file.read_bytes() == data):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return file


def _noise(seed: str, size: int, head: bytes = b"") -> bytes:
    """Return bytes that are the same on every machine."""
    return head + random.Random(seed).randbytes(size - len(head))


def _layers(name: str, weights: Path, template: str, **described: str) -> list[tuple[str, Path]]:
    """Return configuration and layers of a library model, as ``ollama create`` and ``ollama push`` make them."""
    configuration = {
        "model_format": "gguf",
        **described,
        "model_families": [described["model_family"]],
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    parameters = {"stop": ["<end_of_turn>"]}
    return [
        (_CONFIGURATION, _write(f"library/{name}/configuration", json.dumps(configuration))),
        (f"{_LAYER}model", weights),
        (f"{_LAYER}template", _write(f"library/{name}/template", template)),
        (f"{_LAYER}params", _write(f"library/{name}/params", json.dumps(parameters))),
    ]


def _smollm2() -> Offer:
    return Offer(repositories={"HuggingFaceTB/SmolLM2-135M-Instruct": ensure_converted_model()})


def _gemma() -> Offer:
    file = ensure_gemma()
    layers = _layers("gemma3", file, _GEMMA_TEMPLATE, model_family="gemma3", model_type="268.10M", file_type="Q4_K_M")
    return Offer(library={"library/gemma3:270m": layers}, downloads={"/files/gemma-3-270m-Q4_K_M.gguf": file})


def _small() -> Offer:
    """Files without a model in them, quick to make and to bring."""
    weights = _noise("safetensors", 2_000_000)
    configuration = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    for folder in ("stand-in/small", "google/gemma-3-270m-it"):
        _write(f"repositories/{folder}/config.json", configuration)
        _write(f"repositories/{folder}/tokenizer.json", "{}")
        _write(f"repositories/{folder}/model-00001-of-00002.safetensors", weights[:1_000_000])
        _write(f"repositories/{folder}/model-00002-of-00002.safetensors", weights[1_000_000:])
        _write(f"repositories/{folder}/pytorch_model.bin", weights[:100_000])
    top = cache_dir() / "model-hub" / FORMAT / "repositories"
    gguf = _write("small.gguf", _noise("gguf", 3_000_000, b"GGUF"))
    return Offer(
        repositories={name: top / name for name in ("stand-in/small", "google/gemma-3-270m-it")},
        gated={"google/gemma-3-270m-it": "hf_stand_in"},
        library={
            "library/small:1b": _layers(
                "small", gguf, "{{ .Prompt }}", model_family="llama", model_type="1B", file_type="Q4_0"
            )
        },
        downloads={"/files/small.gguf": gguf, "/files/interrupted.gguf": gguf},
    )


#: Name → what makes it. The small files are always there.
MODELS: dict[str, Callable[[], Offer]] = {"gemma": _gemma, "smollm2": _smollm2}


def url(path: str = "") -> str:
    """An address at the hub, as the nodes and this machine reach it."""
    return f"http://{model_hub_address()}/{path}"


def models_of_inventory(file: Path) -> list[str] | None:
    """Names of the models that an inventory's nodes ask for; None where they need no hub.

    ``local_node_model_hub`` of ``all`` is true for all of them, or a list of their names.
    """
    variables = (yaml.safe_load(file.read_text()).get("all") or {}).get("vars") or {}
    wanted = variables.get("local_node_model_hub", False)
    if wanted is True:
        return list(MODELS)
    return None if wanted is False else [str(name) for name in wanted]


def _describe(offers: Iterable[Offer]) -> tuple[dict[str, Any], list[str]]:
    """Return the program's description of what there is, and podman's options for the files that it names."""
    places: dict[Path, str] = {}

    def place(path: Path) -> str:
        return places.setdefault(path, f"/srv/{len(places)}")

    description: dict[str, Any] = {"repositories": {}, "library": {}, "downloads": {}}
    for offer in offers:
        for name, folder in offer.repositories.items():
            found = {"folder": place(folder), "commit": commit(name)}
            token = offer.gated.get(name)
            description["repositories"][name] = {**found, "gated": token is not None, "token": token}
        for name, layers in offer.library.items():
            description["library"][name] = [[kind, place(file)] for kind, file in layers]
        for path, file in offer.downloads.items():
            description["downloads"][path] = place(file)
    options = [word for path, inside in places.items() for word in ("--volume", f"{path}:{inside}:ro")]
    return description, options


def _served() -> dict[str, Any]:
    """Return what the running hub was started with: models and digest; empty without one."""
    try:
        with urllib.request.urlopen(url("started.json"), timeout=3) as reply:
            return dict(json.loads(reply.read()))
    except (OSError, ValueError):
        return {}


def ensure_model_hub(models: Iterable[str]) -> bool:
    """Serve the named models to the nodes, beside those that are served; false when all of them are already."""
    wanted = set(models)
    if unknown := sorted(wanted - set(MODELS)):
        raise LocalNodesError(f"the model hub has no {unknown[0]!r}; there are {', '.join(MODELS)}")
    with alone(cache_dir()):
        served = _served()
        names = sorted(wanted | set(served.get("models", [])))
        description, options = _describe([_small(), *(MODELS[name]() for name in names)])
        text = json.dumps(description, sort_keys=True)
        digest = hashlib.sha256(PROGRAM.read_bytes() + text.encode() + "".join(options).encode()).hexdigest()[:16]
        started = {"models": names, "digest": digest}
        if served == started:
            return False
        description["downloads"]["/started.json"] = "/srv/started.json"
        files = [(PROGRAM, "program.py"), (_write("description.json", json.dumps(description)), "description.json")]
        files.append((_write("started.json", json.dumps(started)), "started.json"))
        options += [word for path, name in files for word in ("--volume", f"{path}:/srv/{name}:ro")]
        ensure_network()
        with step(f"stand-in model hub on {url()}"):
            _start(options, started)
        return True


def _start(options: list[str], started: dict[str, Any]) -> None:
    stop_model_hub()
    options = ["--privileged", *network_options(model_hub_address()), "--volume", "/usr:/usr:ro", *options]
    command = ["/usr/bin/python3", "/srv/program.py", "/srv/description.json"]
    podman("run", "--detach", "--name", NAME, *options, usr_image(), *command)
    for _ in range(120):
        if _served() == started:
            return
        time.sleep(0.25)
    log = podman("logs", "--tail", "5", NAME, check=False).stderr.strip()
    raise LocalNodesError(f"the stand-in model hub does not answer on {url()}: {log}")


def run_model_hub(models: Iterable[str]) -> None:
    """Serve the named models and say so, also where there was nothing to do."""
    if not ensure_model_hub(models):
        say(f"  ok stand-in model hub is on {url()}")


def stop_model_hub() -> None:
    """Remove the hub's container; the models stay in the cache."""
    podman("kill", NAME, check=False)
    podman("rm", "--force", "--ignore", NAME)


def remove_model_hub() -> None:
    """Remove the small files, too."""
    stop_model_hub()
    shutil.rmtree(cache_dir() / "model-hub", ignore_errors=True)
