"""The inputs that all training nodes share, and their construction from a node's lists."""

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
    """The inputs of a training node; fields have the names of the inputs.

    Args:
        base: Base with MODEL, CLIP and VAE.
        steps: Training steps; 0 is the family's default.
        rank: LoRA rank; 0 is the family's default.
        learning_rate: Learning rate; 0 is the family's default.
        seed: Seed of all random numbers.
        run_name: Name of the run's folder.
        settings: Training settings of the user.
        node_id: Id of the node in the graph; None outside a server.
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
    """Return a request from the inputs that ComfyUI passes to a node that accepts lists.

    Args:
        kind: Class of the request.
        inputs: Lists of values by input name.
        node_id: Id of the node in the graph; None outside a server.

    Raises:
        ValueError: A list is connected to an input that accepts a single value.
    """
    values = read_inputs(kind, inputs)
    base = Base(*(values.pop(name, None) for name in ("model", "clip", "vae")))
    return kind(base=base, node_id=node_id, **values)
