"""Aims, and whether they are met."""

from __future__ import annotations

from collections.abc import Sequence


def said(verdicts: Sequence[tuple[str, bool]]) -> list[str]:
    """One line for each aim."""
    return [f"- {text}: {'met' if met else 'missed'}" for text, met in verdicts]
