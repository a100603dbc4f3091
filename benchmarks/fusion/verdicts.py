"""Format the lines of a report that say whether its aims are met."""

from __future__ import annotations

from collections.abc import Sequence


def verdict_lines(verdicts: Sequence[tuple[str, bool]]) -> list[str]:
    """Return one line for each aim."""
    return [f"- {text}: {'met' if met else 'missed'}" for text, met in verdicts]
