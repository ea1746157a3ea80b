#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the GPU images of llama.cpp, Ollama, SGLang and vLLM, where there is no GPU.

It is as strict as the original where a role can be wrong: it knows the options that the original knows and no others,
starts only with the devices that its variant needs, reads the model that it is told to, listens when the original does,
and says in the log and to the readiness program what the original says. What it generates is one word.

It is called as the original is; the name tells which one. The file /stand-in-gpu has the variant, cuda or rocm. A CUDA
device is what the node's stand-in CDI specification gives: device nodes, and STAND_IN_GPU. Devices of ROCm are those
that the kernel has, and must be open to the process's user. STAND_IN_NO_GPU=1 is a driver that does not answer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

#: Seconds from the program's start until the model has loaded.
LOAD_SECONDS = float(os.environ.get("STAND_IN_LOAD_SECONDS", "1.5"))
VARIANT = Path("/stand-in-gpu")
WORD = "Paris"

#: Options of vLLM 0.33 and SGLang 0.5.23 that take a value, and those that take none.
VLLM = (
    "--revision --served-model-name --host --port --dtype --max-model-len --max-num-seqs --max-num-batched-tokens "
    "--kv-cache-dtype --shutdown-timeout --tensor-parallel-size --pipeline-parallel-size --gpu-memory-utilization "
    "--kv-cache-memory-bytes --tool-call-parser --reasoning-parser --generation-config --seed"
)
VLLM_SWITCHES = "--enforce-eager --enable-auto-tool-choice --enable-prefix-caching --enable-chunked-prefill"
SGLANG = (
    "--model-path --revision --served-model-name --host --port --dtype --context-length --max-running-requests "
    "--chunked-prefill-size --kv-cache-dtype --tp-size --pp-size --mem-fraction-static --max-total-tokens "
    "--max-mamba-cache-size --swa-full-tokens-ratio --device --tool-call-parser --reasoning-parser --random-seed"
)
SGLANG_SWITCHES = "--enable-metrics --disable-radix-cache --skip-server-warmup"
#: The options of llama-server that a role may pass as arguments, and what ended long ago (llama.cpp: common/arg.cpp).
LLAMACPP_SWITCHES = ("--no-warmup", "--metrics", "--jinja", "--no-slots", "--offline", "--verbose")
LLAMACPP_REMOVED = ("--mlock", "--mmap", "--no-mmap")


def log(text: str) -> None:
    """Write a line as the originals do: to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def end(text: str, status: int = 1) -> NoReturn:
    """End as the original does, with its words."""
    log(text)
    raise SystemExit(status)


def devices(variant: str) -> list[str]:
    """Return the GPUs that the process can use."""
    if os.environ.get("STAND_IN_NO_GPU"):
        return []
    if variant == "cuda":
        gpu = os.environ.get("STAND_IN_GPU")
        return [gpu] if gpu and _opens("/dev/nvidiactl") and _opens("/dev/nvidia-uvm") else []
    folder = Path("/dev/dri")
    nodes = sorted(str(node) for node in folder.glob("renderD*")) if folder.is_dir() else []
    return [node for node in nodes if _opens(node)] if _opens("/dev/kfd") else []


def _opens(node: str) -> bool:
    try:
        os.close(os.open(node, os.O_RDWR))
    except OSError:
        return False
    return True


class Engine:
    """What all engines have: a model that is loaded after some seconds, and a server."""

    #: Paths that answer while the model loads, and their status then.
    early: dict[str, int] = {}

    def __init__(self, name: str, port: int, variant: str) -> None:
        self.name = name
        self.port = port
        self.variant = variant
        self.loaded = False
        self.tokens = 0
        self.gpus = devices(variant)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, str | dict[str, Any]]:
        """Return status and content of an answer."""
        if not self.loaded and path in self.early:
            return self.early[path], {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
        if not self.loaded:
            return 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
        if path == "/health":
            return 200, {"status": "ok"}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.name, "object": "model"}]}
        if path == "/metrics":
            return 200, self.metrics()
        if (method, path) == ("POST", "/v1/chat/completions"):
            if body.get("model") != self.name:
                return 404, {"error": {"message": f"The model `{body.get('model')}` does not exist.", "code": 404}}
            return 200, self.chat()
        return 404, {"error": {"message": "Not Found", "code": 404}}

    def metrics(self) -> str:
        """Return the tokens so far, under the engine's own name of them."""
        raise NotImplementedError

    def chat(self) -> dict[str, Any]:
        """Return one token, and count it."""
        self.tokens += 1
        message = {"role": "assistant", "content": WORD}
        return {
            "id": "chatcmpl-stand-in",
            "object": "chat.completion",
            "model": self.name,
            "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }

    def load(self) -> None:
        """Take the time that it takes."""
        time.sleep(LOAD_SECONDS)
        self.loaded = True

    def serve(self, host: str = "0.0.0.0") -> None:
        """Answer until the process is told to end."""
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                status, content = engine.answer(self.command, self.path.partition("?")[0], body)
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer((host, self.port), Handler)
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        server.serve_forever()


class LlamaCpp(Engine):
    """llama-server: all of it in LLAMA_ARG_*, a GGUF file, listens while it loads."""

    early = {"/health": 503}

    def __init__(self, arguments: list[str], variant: str) -> None:
        for argument in arguments:
            if argument not in LLAMACPP_SWITCHES:
                end(f"error: invalid argument: {argument}")
        for name in sorted(os.environ):
            option = f"--{name.removeprefix('LLAMA_ARG_').lower().replace('_', '-')}"
            if name.startswith("LLAMA_ARG_") and option in LLAMACPP_REMOVED:
                end(f'error while handling environment variable "{name}": the argument has been removed')
        model = Path(os.environ.get("LLAMA_ARG_MODEL", ""))
        super().__init__(
            os.environ.get("LLAMA_ARG_ALIAS", model.name), int(os.environ.get("LLAMA_ARG_PORT", "8080")), variant
        )
        kind = {"cuda": "CUDA", "rocm": "ROCm"}[variant]
        known = [f"{kind}{number}" for number in range(len(self.gpus))]
        if not known:
            words = "no CUDA-capable device is detected" if variant == "cuda" else "no ROCm-capable device is detected"
            log(f"ggml_cuda_init: failed to initialize {kind}: {words}")
        for device in filter(None, os.environ.get("LLAMA_ARG_DEVICE", "").split(",")):
            if device not in known:
                end(f'error while handling environment variable "LLAMA_ARG_DEVICE": invalid device: {device}')
        if not model.is_file() or model.open("rb").read(4) != b"GGUF":
            end(f"gguf_init_from_file: failed to open GGUF file '{model}'")
        for device, gpu in zip(known, self.gpus, strict=True):
            log(f"  Device {device[-1]}: Stand-in ({gpu})")
        layers = os.environ.get("LLAMA_ARG_N_GPU_LAYERS", "auto")
        log(f"load_tensors: offloaded {layers} layers to {', '.join(known) or 'CPU'}")

    def run(self) -> None:
        """Listen, and load beside that."""
        threading.Thread(target=self.load, daemon=True).start()
        log(f"main: HTTP server is listening, hostname: 0.0.0.0, port: {self.port}")
        self.serve()

    def metrics(self) -> str:
        return f"llamacpp:tokens_predicted_total {self.tokens}\n"


class TensorEngine(Engine):
    """vLLM and SGLang: a repository of the Hub's cache, and a share of the GPU's memory."""

    refusal: str

    def __init__(self, parsed: argparse.Namespace, name: str, variant: str, share: str) -> None:
        super().__init__(parsed.served_model_name or name, int(parsed.port), variant)
        if not self.gpus:
            end(self.refusal)
        folder = Path(os.environ.get("HF_HUB_CACHE", "")) / f"models--{name.replace('/', '--')}"
        revision = parsed.revision or "main"
        reference = folder / "refs" / revision
        snapshot = folder / "snapshots" / (reference.read_text() if reference.is_file() else revision)
        if not list(snapshot.glob("*.safetensors")) or os.environ.get("HF_HUB_OFFLINE") != "1":
            end(
                "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for "
                f"the specified revision on the local disk: {name} at {revision}"
            )
        if not 0 < float(share) <= 1:
            end(f"ValueError: the share of GPU memory must be in (0, 1], got {share}")
        cache = Path(os.environ["XDG_CACHE_HOME"])
        (cache / "compiled").write_text("kernels\n")
        if os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize < 512 * 1024**2:
            end("RuntimeError: unable to write to file </torch_shm>: No space left on device (28)")


class Vllm(TensorEngine):
    """vllm serve: refuses connections until it has loaded."""

    refusal = "RuntimeError: Failed to infer device type, please set the environment variable VLLM_LOGGING_LEVEL=DEBUG"

    def __init__(self, arguments: list[str], variant: str) -> None:
        parser = _parser("vllm", VLLM, VLLM_SWITCHES)
        parser.add_argument("model")
        parsed = parser.parse_args(arguments)
        super().__init__(parsed, parsed.model, variant, parsed.gpu_memory_utilization or "0.92")
        log(f"INFO [api_server.py] vLLM API server, args: {' '.join(arguments)}")

    def run(self) -> None:
        """Load, then listen."""
        self.load()
        log("INFO:     Application startup complete.")
        self.serve()

    def metrics(self) -> str:
        return f'vllm:generation_tokens_total{{model_name="{self.name}"}} {self.tokens}\n'


class Sglang(TensorEngine):
    """sglang.launch_server: answers 503 while it loads, at 127.0.0.1 unless told."""

    refusal = "RuntimeError: No accelerator (CUDA, XPU, HPU, NPU, MUSA, MPS) is available."
    early = {"/health": 503}

    def __init__(self, arguments: list[str], variant: str) -> None:
        parsed = _parser("launch_server.py", SGLANG, SGLANG_SWITCHES).parse_args(arguments)
        super().__init__(parsed, parsed.model_path or "", variant, parsed.mem_fraction_static or "0.88")
        self.host = parsed.host or "127.0.0.1"
        self.with_metrics = parsed.enable_metrics
        log(f"server_args=ServerArgs({' '.join(arguments)})")

    def run(self) -> None:
        """Listen, and load beside that."""
        threading.Thread(target=self._load, daemon=True).start()
        self.serve(self.host)

    def _load(self) -> None:
        self.load()
        log("The server is fired up and ready to roll!")

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, str | dict[str, Any]]:
        if path == "/metrics" and not self.with_metrics:
            return 404, {"detail": "Not Found"}
        return super().answer(method, path, body)

    def metrics(self) -> str:
        return f'sglang:generation_tokens_total{{model_name="{self.name}"}} {self.tokens}\n'


class Ollama(Engine):
    """ollama serve: answers at once, loads a model when it is asked, and runs on the CPU without a word."""

    def __init__(self, arguments: list[str], variant: str) -> None:
        if arguments != ["serve"]:
            end(f'Error: unknown command "{" ".join(arguments)}" for "ollama"')
        super().__init__("", int(os.environ["OLLAMA_HOST"].rpartition(":")[2]), variant)
        self.store = Path(os.environ["OLLAMA_MODELS"])
        self.resident: dict[str, int] = {}
        self.lock = threading.Lock()
        found = f"library={variant} devices={','.join(self.gpus)}" if self.gpus else "library=cpu"
        log(f'time=now level=INFO source=types.go msg="inference compute" {found}')

    def run(self) -> None:
        """Listen."""
        self.serve()

    def models(self) -> dict[str, int]:
        """Return names and sizes of the models in the store."""
        top = self.store / "manifests" / "registry.ollama.ai" / "library"
        found = {}
        for path in sorted(top.glob("*/*")):
            manifest = json.loads(path.read_text())
            blobs = [self.store / "blobs" / layer["digest"].replace(":", "-") for layer in manifest["layers"]]
            if all(blob.is_file() for blob in blobs):
                found[f"{path.parent.name}:{path.name}"] = sum(layer["size"] for layer in manifest["layers"])
        return found

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, str | dict[str, Any]]:
        models = self.models()
        if path == "/":
            return 200, "Ollama is running"
        if path == "/api/version":
            return 200, {"version": "0.32.15"}
        if path == "/api/tags":
            return 200, {"models": [{"name": name, "model": name, "size": size} for name, size in models.items()]}
        if path == "/api/ps":
            # Equal when all layers are on GPUs.
            on_gpu = {name: size if self.gpus else 0 for name, size in self.resident.items()}
            listed = [{"name": n, "model": n, "size": s, "size_vram": on_gpu[n]} for n, s in self.resident.items()]
            return 200, {"models": listed}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}
        if (method, path) == ("POST", "/v1/chat/completions"):
            name = str(body.get("model"))
            name = name if ":" in name else f"{name}:latest"
            if name not in models:
                return 404, {"error": {"message": f"model '{body.get('model')}' not found", "type": "not_found_error"}}
            with self.lock:
                if name not in self.resident:
                    self.load()
                    self.resident[name] = models[name]
            self.name = name
            return 200, self.chat()
        return 404, "404 page not found"


def _parser(program: str, options: str, switches: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
    for option in options.split():
        parser.add_argument(option)
    for switch in switches.split():
        parser.add_argument(switch, action="store_true")
    return parser


def main(argv: list[str]) -> None:
    """Be the engine that the program is called as."""
    variant = VARIANT.read_text().strip()
    called, arguments = Path(argv[0]).name, argv[1:]
    if called == "llama-server":
        LlamaCpp(arguments, variant).run()
    elif called == "ollama":
        Ollama(arguments, variant).run()
    elif called == "vllm" and arguments[:1] == ["serve"]:
        Vllm(arguments[1:], variant).run()
    elif called == "launch_server.py":
        Sglang(arguments, variant).run()
    else:
        end(f"the stand-in is no {called}")


if __name__ == "__main__":
    main(sys.argv)
