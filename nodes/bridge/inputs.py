"""Inputs that several nodes declare alike."""

from __future__ import annotations

from comfy_api.latest import io

from .socket_types import LARGEST_SEED, ConceptType, TrainingSettingsType

MOST_CONCEPTS = 50


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
