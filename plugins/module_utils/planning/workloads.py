# SPDX-License-Identifier: Apache-2.0
"""The workloads that a node is recommended services for: what each asks of backends, models, context and requests."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: What a fleet behind one gateway mostly serves: people and programs that talk with the same models.
DEFAULT_WORKLOAD = "chat"
#: Steps of a model's quality, each of them twice the size, that the best backend for a workload is worth. Weights in
#: 4 bits instead of 8, which is what another backend mostly has to offer, make room for one step.
BACKEND_WORTH = 1.0
#: What vLLM and SGLang, which both batch continuously and share prompts, are worth before each other.
ALIKE = frozenset({"vllm", "sglang"})
ALIKE_WORTH = 0.25


@dataclass(frozen=True)
class Role:
    """One service of a workload: its backends in the order of the rules, and the rule in words.

    ``parallel`` is in place of the workload's. With ``strict`` the first backend that serves any model is taken.
    """

    backends: tuple[str, ...]
    rule: str
    parallel: int | None = None
    strict: bool = False

    def cost(self, backend: str, first: str) -> float:
        """Return the steps of quality that a backend must offer more than the first one of those that run."""
        if backend == first:
            return 0.0
        if self.strict:
            return math.inf
        return ALIKE_WORTH if {backend, first} == ALIKE else BACKEND_WORTH


@dataclass(frozen=True)
class Workload:
    """What a workload asks for. All numbers are planning values.

    ``needs`` are capabilities a model must have and ``likes`` those that make one better. ``context_length`` (tokens a
    request) and ``parallel`` (requests at once) are the least with which the workload is served well, as are
    ``tokens_per_second`` for one user: people read 5 to 10, models think before they
    answer, and agents wait for the end. With ``many_users`` the most
    tokens a second in all are best, without the earliest first token. With ``replicas`` a node serves its model as many
    times as it has room for.
    """

    roles: tuple[Role, ...]
    needs: tuple[str, ...]
    likes: tuple[str, ...]
    context_length: int
    parallel: int
    tokens_per_second: int
    many_users: bool
    replicas: bool = False


_ASSISTANT = ("tools", "reasoning", "vision")
_SHARED = ("sglang", "vllm", "llamacpp", "ollama")
WORKLOADS = {
    "experimentation": Workload(
        (
            Role(
                ("ollama", "llamacpp", "vllm", "sglang"),
                "a single user who tries models is served best by one that loads on demand",
            ),
        ),
        needs=("chat",),
        likes=_ASSISTANT,
        context_length=8192,
        parallel=1,
        tokens_per_second=15,
        many_users=False,
    ),
    "chat": Workload(
        (Role(("vllm", "sglang", "llamacpp", "ollama"), "many chat users need continuous batching"),),
        needs=("chat",),
        likes=_ASSISTANT,
        context_length=8192,
        parallel=8,
        tokens_per_second=20,
        many_users=True,
        replicas=True,
    ),
    "agents": Workload(
        (Role(_SHARED, "agents send the same long prompts again and again, whose cache is shared best by SGLang"),),
        needs=("chat", "tools"),
        likes=("reasoning", "vision"),
        context_length=32768,
        parallel=4,
        tokens_per_second=25,
        many_users=True,
    ),
    "coding": Workload(
        (Role(_SHARED, "the same files come with every question, so prompts are shared as those of agents are"),),
        needs=("code",),
        likes=("tools", "reasoning"),
        context_length=32768,
        parallel=1,
        tokens_per_second=25,
        many_users=True,
    ),
    "edge": Workload(
        (Role(("llamacpp", "ollama"), "at the edge llama.cpp serves, the smallest of the engines", strict=True),),
        needs=("chat",),
        likes=_ASSISTANT,
        context_length=8192,
        parallel=1,
        tokens_per_second=15,
        many_users=False,
    ),
    "mixed": Workload(
        (
            Role(("sglang", "vllm", "llamacpp"), "of a mixed load SGLang takes what many users and agents ask"),
            Role(("ollama",), "of a mixed load Ollama takes the trying of models", parallel=1),
        ),
        needs=("chat",),
        likes=_ASSISTANT,
        context_length=8192,
        parallel=4,
        tokens_per_second=20,
        many_users=True,
    ),
}
CPU_ROLE = Role(("llamacpp", "ollama", "vllm", "sglang"), "on a CPU llama.cpp comes first, which is made for it")
