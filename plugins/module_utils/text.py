# SPDX-License-Identifier: Apache-2.0
"""Text that a person reads: labelled lines and tables, plain and aligned. Runs on nodes too (Python 3.8)."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence

GIB = 1 << 30
LABEL_WIDTH = 10


def row(label: str, text: Optional[str]) -> List[str]:
    """Return one labelled line, none without a text."""
    return [label.ljust(LABEL_WIDTH) + text] if text else []


def joined(parts: Sequence[Optional[str]], separator: str = ", ") -> Optional[str]:
    """Join the parts that are known; None without any."""
    return separator.join(part for part in parts if part) or None


def after(word: str, value: Any) -> Optional[str]:
    """Return a value behind its word, None when it is unknown."""
    return None if value is None else f"{word} {value}"


def counted(count: Optional[int], one: str, several: Optional[str] = None) -> Optional[str]:
    """Return a count with its noun, None when it is unknown."""
    return None if count is None else f"{count} {one if count == 1 else several or one + 's'}"


def gib(value: Optional[int]) -> str:
    """Return bytes as GiB with one decimal, a dash when they are unknown."""
    return "-" if value is None else f"{value / GIB:.1f}"


def ranges(labels: Sequence[str]) -> str:
    """0, 1, 2, 5 becomes 0-2, 5; labels that are no numbers stay as they are."""
    if not all(label.isdigit() for label in labels):
        return ", ".join(labels)
    found: List[List[int]] = []
    for number in sorted(int(label) for label in labels):
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join("-".join(str(number) for number in group) for group in found)


def widths(rows: Sequence[Sequence[str]]) -> List[int]:
    """Return the width of every column of a table."""
    return [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> List[str]:
    """Return the lines of a table, two blanks between its columns; the columns ``right`` are aligned to the right."""
    wide = widths(rows)
    return [
        "  ".join(
            cell.rjust(wide[column]) if column in right else cell.ljust(wide[column])
            for column, cell in enumerate(cells)
        ).rstrip()
        for cells in rows
    ]
