"""The inputs that all training nodes have, and how a node's lists become them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...training import TrainingSettings
from ..bridge.inputs import read_inputs
from .base import Base

Request = TypeVar("Request", bound="TrainRequest")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainRequest:
    """The inputs of a training node, each under its own name.

    Args:
        base: MODEL, CLIP and VAE.
        steps: Training steps; 0 is the family's default.
        rank: LoRA rank; 0 is the family's default.
        learning_rate: Learning rate; 0 is the family's default.
        seed: Seed of every draw.
        run_name: Name of the run's folder.
        settings: The user's settings.
        node_id: The node's id in the graph; ``None`` outside a server.
    """

    base: Base
    steps: int
    rank: int = 0
    learning_rate: float
    seed: int
    run_name: str
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    node_id: str | None = None


def read_request(
    kind: type[Request], inputs: Mapping[str, Sequence[Any]], node_id: str | None
) -> Request:
    """Return a request of what ComfyUI hands to a node that takes lists.

    Args:
        kind: What is asked for.
        inputs: Values by the name of their input.
        node_id: The node's id in the graph; ``None`` outside a server.

    Raises:
        ValueError: A list is connected where one value is needed.
    """
    values = read_inputs(kind, inputs)
    base = Base(*(values.pop(name, None) for name in ("model", "clip", "vae")))
    return kind(base=base, node_id=node_id, **values)
