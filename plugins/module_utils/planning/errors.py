# SPDX-License-Identifier: Apache-2.0
"""The one error of the plan, and the words its sentences are built from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

MIB = 1024**2
GIB = 1024**3

#: A sentence names at most so many of the entries that a variable has.
MOST_CHOICES = 8


class PlanError(ValueError):
    """There is no plan; a sentence for each reason: host, variable or service, what is wrong, what would be right.

    The text has a line for each of the ``problems``.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Problems:
    """Collects refusals, so that all of a node's are told at once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def each(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """Return what the function returns, or None and remember the problems when it raises PlanError."""
        try:
            return function(*arguments)
        except PlanError as error:
            self._texts += [text for text in error.problems if text not in self._texts]
            return None

    def tell(self) -> None:
        """Raise PlanError with all problems, if there is any."""
        if self._texts:
            raise PlanError(*self._texts)


def size_text(number_of_bytes: int) -> str:
    """Return a size for people: ``"98 MiB"`` below 1 GiB, ``"4.6 GiB"`` from there on."""
    if number_of_bytes < GIB:
        return f"{max(1, round(number_of_bytes / MIB))} MiB"
    return f"{number_of_bytes / GIB:.1f} GiB"


def choices_text(choices: Iterable[str]) -> str:
    """Return the sorted choices separated by commas, or ``"none"``."""
    return ", ".join(sorted(choices)) or "none"


def suggestion_text(word: str, choices: Iterable[str], what: str, where: str | None = None) -> str:
    """Return ``"did you mean X? <what>: a, b"``, without the question when nothing is close to the word.

    Args:
        word: What was written.
        choices: What would have been right.
        what: Word for the choices, such as ``known``.
        where: The variable that has them all; a long list then shows the nearest of them and counts the others.
    """
    known = sorted(choices)
    # A repository's name differs from ours by its owner and by capital letters.
    names = {choice.lower(): choice for choice in known}
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    listed = f"{what}: {choices_text(known)}"
    if where is not None and len(known) > MOST_CHOICES:
        nearest = difflib.get_close_matches(word.lower(), names, n=MOST_CHOICES, cutoff=0)
        shown = ", ".join(names[name] for name in nearest)
        listed = f"{what}: {shown} and {len(known) - len(nearest)} more in {where}"
    return f"did you mean {names[close[0]]}? {listed}" if close else listed
