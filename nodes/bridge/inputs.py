"""Declare inputs that several nodes share, and read the values of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any, TypeVar

from comfy_api.latest import io

from ...training.files.concept import Concept
from ...training.files.lora_file import PRECISIONS
from .socket_types import LARGEST_SEED, ConceptType, TrainingSettingsType

MOST_CONCEPTS = 50
_LIST = "list"  # key in the metadata of fields that keep their lists

Value = TypeVar("Value")


def seed_input(tooltip: str) -> io.Int.Input:
    """Return the seed input, which keeps its value after a run unless the user changes that."""
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
    model: str = "Base model to train on; it is not changed.",
    vae: str = "VAE of the base, which encodes the pictures.",
) -> list[io.Input]:
    """Return the inputs for MODEL, CLIP and VAE with their tooltips."""
    return [
        io.Model.Input("model", tooltip=model),
        io.Clip.Input("clip", tooltip=clip),
        io.Vae.Input("vae", tooltip=vae),
    ]


def steps_input(tooltip: str, name: str = "steps", default: int = 0) -> io.Int.Input:
    """Return an input for a number of steps; the default is also the minimum."""
    return io.Int.Input(name, default=default, min=default, max=1_000_000, tooltip=tooltip)


def rank_input(tooltip: str, default: int = 0) -> io.Int.Input:
    """Return an input for a LoRA rank; 0 is allowed only if it is the default."""
    return io.Int.Input("rank", default=default, min=min(default, 1), max=1024, tooltip=tooltip)


def run_name_input(default: str, kind: str = "run's folder") -> io.String.Input:
    """Return the input for the name of a run's folder."""
    tooltip = f"Name of the {kind} below output/pastiche."
    return io.String.Input("run_name", default=default, tooltip=tooltip)


def text_input(
    name: str, tooltip: str, placeholder: str | None = None, optional: bool = False
) -> io.String.Input:
    """Return a text input with several lines, empty by default."""
    return io.String.Input(
        name,
        default="",
        multiline=True,
        placeholder=placeholder,  # pyright: ignore[reportArgumentType]  # ComfyUI accepts None
        optional=optional,
        tooltip=tooltip,
    )


def strength_input(name: str, tooltip: str, most: float = 10.0) -> io.Float.Input:
    """Return an input for a strength; the default of 1 is the trained strength."""
    return io.Float.Input(name, default=1.0, min=-most, max=most, step=0.01, tooltip=tooltip)


def filename_input(default: str, kind: str, other: str) -> io.String.Input:
    """Return the input for the name of a file to save.

    Args:
        default: Default name.
        kind: Kind of the saved object, for the tooltip.
        other: Kind of object that may already use the name, for the tooltip.
    """
    tooltip = (
        f"Name of the file, or subfolder/name. If another {other} has this name, _2, _3 and so on "
        f"is added; if the same {kind} is already saved under it, nothing is written."
    )
    return io.String.Input("filename", default=default, tooltip=tooltip)


def precision_input(tooltip: str) -> io.Combo.Input:
    """Return the input for the precision of a file to save."""
    return io.Combo.Input("precision", options=list(PRECISIONS), default="fp16", tooltip=tooltip)


def preview_image_input() -> io.Image.Input:
    """Return the input for the picture that is saved with a file."""
    tooltip = (
        "Example picture; it is stored in the file as a thumbnail and next to it as a preview."
    )
    return io.Image.Input("image", optional=True, tooltip=tooltip)


def rate_input(name: str, tooltip: str) -> io.Float.Input:
    """Return an input for a learning rate; 0 means the default."""
    return io.Float.Input(
        name, default=0.0, min=0.0, max=1.0, step=1e-7, round=1e-8, tooltip=tooltip
    )


def settings_input() -> io.Input:
    """Return the socket for the training settings."""
    return TrainingSettingsType.Input(
        "settings",
        optional=True,
        tooltip="Training options from Training Settings (Pastiche); without it the defaults "
        "apply.",
    )


def concepts_input(source: str, whole: str, least: int = 1) -> io.Autogrow.Input:
    """Return an input that grows by one socket whenever the last one is connected.

    Args:
        source: Tooltip of one socket.
        whole: Tooltip of the whole input.
        least: Number of sockets that must be connected.
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


def single_value(name: str, values: Sequence[Value]) -> Value:
    """Return the single value of an input; nodes that accept lists get every input as a list.

    Raises:
        ValueError: The list does not have exactly one value.
    """
    if len(values) != 1:
        raise ValueError(
            f"{name} must be a single value, got a list of {len(values)}; connect one value"
        )
    return values[0]


def list_input(*default: Any) -> Any:
    """Return a dataclass field for an input that may hold several values.

    Without a default the field is required.
    """
    metadata = {_LIST: True}
    return field(default=default[0], metadata=metadata) if default else field(metadata=metadata)


def read_inputs(kind: type, inputs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the values of a request's fields from the inputs of a node that accepts lists.

    An input that is not connected is left out, so that its field keeps the default.

    Args:
        kind: Dataclass of the request; fields made by ``list_input`` keep their lists.
        inputs: Lists of values by input name.

    Raises:
        ValueError: A list is connected to an input that accepts a single value.
    """
    lists = {one.name for one in fields(kind) if one.metadata.get(_LIST)}
    return {
        name: value if name in lists else single_value(name, value)
        for name, value in inputs.items()
        if value is not None
    }


def one_or_each(values: Sequence[Value], count: int, name: str, kind: str) -> list[Value]:
    """Return ``count`` values: a single value is repeated, ``count`` values are returned unchanged.

    Args:
        values: Values of the input.
        count: Number of values to return.
        name: Name of the input, for messages.
        kind: Kind of object that each value belongs to, such as ``picture``, for messages.

    Raises:
        ValueError: The number of values is neither 1 nor ``count``.
    """
    if len(values) not in (1, count):
        raise ValueError(
            f"{name} must be one text or one per {kind}, got {len(values)} for {count} "
            f"{kind}{'' if count == 1 else 's'}; give one for all or one for each"
        )
    return list(values) * count if len(values) == 1 else list(values)


def lines_of(texts: Sequence[str]) -> list[str]:
    """Return the non-empty lines of all texts of an input, stripped."""
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def connected_concepts(concepts: Mapping[str, Sequence[Concept]] | None) -> tuple[Concept, ...]:
    """Return the concepts of all connected inputs of a node, in order."""
    return tuple(concept for wire in (concepts or {}).values() for concept in wire)
