"""Inputs that several nodes declare, and helpers that read the values of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any, TypeVar

from comfy_api.latest import io

from ...training.files.concept import Concept
from ...training.files.lora_file import PRECISIONS
from .socket_types import LARGEST_SEED, ConceptType, TrainingSettingsType

MOST_CONCEPTS = 50
_LIST = "list"

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


def base_inputs(
    clip: str,
    model: str = "The base to learn on; it is not changed.",
    vae: str = "The base's VAE, for the pictures.",
) -> list[io.Input]:
    """Return MODEL, CLIP and VAE, each with its tooltip."""
    return [
        io.Model.Input("model", tooltip=model),
        io.Clip.Input("clip", tooltip=clip),
        io.Vae.Input("vae", tooltip=vae),
    ]


def steps_input(tooltip: str, name: str = "steps", default: int = 0) -> io.Int.Input:
    """Return a number of steps, whose default is also its least."""
    return io.Int.Input(name, default=default, min=default, max=1_000_000, tooltip=tooltip)


def rank_input(tooltip: str, default: int = 0) -> io.Int.Input:
    """Return a LoRA rank; 0 is allowed where it is the default."""
    return io.Int.Input("rank", default=default, min=min(default, 1), max=1024, tooltip=tooltip)


def run_name_input(default: str, what: str = "run's folder") -> io.String.Input:
    """Return the name of a run's folder."""
    tooltip = f"Name of the {what} below output/pastiche."
    return io.String.Input("run_name", default=default, tooltip=tooltip)


def text_input(
    name: str, tooltip: str, placeholder: str | None = None, optional: bool = False
) -> io.String.Input:
    """Return an empty text of several lines."""
    return io.String.Input(
        name,
        default="",
        multiline=True,
        placeholder=placeholder,
        optional=optional,
        tooltip=tooltip,
    )


def strength_input(name: str, tooltip: str, most: float = 10.0) -> io.Float.Input:
    """Return a strength of 1, as trained."""
    return io.Float.Input(name, default=1.0, min=-most, max=most, step=0.01, tooltip=tooltip)


def filename_input(default: str, kind: str, other: str) -> io.String.Input:
    """Return the name of a file to save.

    Args:
        default: The name.
        kind: What is saved, for the tooltip.
        other: What may have the name already, for the tooltip.
    """
    tooltip = (
        f"A name, or subfolder/name. If another {other} has it, the new one gets _2, _3 and so on; "
        f"if the same {kind} has it, nothing is written."
    )
    return io.String.Input("filename", default=default, tooltip=tooltip)


def precision_input(tooltip: str) -> io.Combo.Input:
    """Return the precision of a file to save."""
    return io.Combo.Input("precision", options=list(PRECISIONS), default="fp16", tooltip=tooltip)


def preview_image_input() -> io.Image.Input:
    """Return the picture that is kept with a saved file."""
    tooltip = "A picture made with it: kept in the file and beside it as a preview."
    return io.Image.Input("image", optional=True, tooltip=tooltip)


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


def list_input(*default: Any) -> Any:
    """Return the field of an input that may hold several values; without a default it is needed."""
    metadata = {_LIST: True}
    return field(default=default[0], metadata=metadata) if default else field(metadata=metadata)


def read_inputs(kind: type, inputs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the fields of a request, each under its input's name, of a node that takes lists.

    An input that is not connected keeps the default of its field.

    Args:
        kind: A dataclass; fields that ``list_input`` makes keep their lists.
        inputs: Values by the name of their input.

    Raises:
        ValueError: A list is connected where one value is needed.
    """
    lists = {one.name for one in fields(kind) if one.metadata.get(_LIST)}
    return {
        name: value if name in lists else only(name, value)
        for name, value in inputs.items()
        if value is not None
    }


def one_or_each(values: Sequence[Value], count: int, name: str, kind: str) -> list[Value]:
    """Return as many values as there are things that have one: one for all of them, or one each.

    Args:
        values: The input's values.
        count: How many there are.
        name: Name of the input, for messages.
        kind: What they belong to, such as ``picture``.

    Raises:
        ValueError: There is another number of values.
    """
    if len(values) not in (1, count):
        raise ValueError(
            f"{name} must be one text or one per {kind}, got {len(values)} for {count} "
            f"{kind}{'' if count == 1 else 's'}; give one for all or one for each"
        )
    return list(values) * count if len(values) == 1 else list(values)


def lines_of(texts: Sequence[str]) -> list[str]:
    """Return the lines of a text input that hold something, whether it came whole or as a list."""
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def joined(concepts: Mapping[str, Sequence[Concept]] | None) -> tuple[Concept, ...]:
    """Return the concepts of all connected inputs of a node, in order."""
    return tuple(concept for wire in (concepts or {}).values() for concept in wire)
