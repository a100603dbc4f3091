"""Inputs that several nodes declare, and helpers that read the values of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from comfy_api.latest import io

from ...training.files.concept import Concept
from .socket_types import LARGEST_SEED, ConceptType, TrainingSettingsType

MOST_CONCEPTS = 50

Value = TypeVar("Value")


def seed_input(tooltip: str) -> io.Int.Input:
    """Return the seed, kept from run to run unless the user asks for another."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=LARGEST_SEED,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=tooltip,
    )


def rate_input(name: str, tooltip: str) -> io.Float.Input:
    """Return a learning rate, of which 0 means the default."""
    return io.Float.Input(
        name, default=0.0, min=0.0, max=1.0, step=1e-7, round=1e-8, tooltip=tooltip
    )


def settings_input() -> io.Custom.Input:
    """Return the socket for Training Settings."""
    return TrainingSettingsType.Input(
        "settings", optional=True, tooltip="From Training Settings (Pastiche)."
    )


def concepts_input(source: str, whole: str, least: int = 1) -> io.Autogrow.Input:
    """Return the input that grows by one socket whenever the last one is connected.

    Args:
        source: The tooltip of one socket.
        whole: The tooltip of all of them.
        least: Sockets that must be connected.
    """
    return io.Autogrow.Input(
        "concepts",
        template=io.Autogrow.TemplatePrefix(
            ConceptType.Input("concept", tooltip=source),
            prefix="concept",
            min=least,
            max=MOST_CONCEPTS,
        ),
        tooltip=whole,
    )


def only(name: str, values: Sequence[Value]) -> Value:
    """Return the one value of an input of a node that takes lists.

    Raises:
        ValueError: A list of several values, or of none, is connected to it.
    """
    if len(values) != 1:
        raise ValueError(
            f"{name} must be a single value, got a list of {len(values)}; connect one value"
        )
    return values[0]


def lines_of(texts: Sequence[str]) -> list[str]:
    """Return the lines of a text input that hold something, whether it came whole or as a list."""
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def joined(concepts: Mapping[str, Sequence[Concept]] | None) -> tuple[Concept, ...]:
    """Return the concepts of all connected inputs of a node, in order."""
    return tuple(concept for wire in (concepts or {}).values() for concept in wire)
