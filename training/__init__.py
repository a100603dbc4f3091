"""When things are learnt: torch and lora_ops only."""

from .config import TrainingConfig, TrainingSettings
from .denoiser import Denoiser, Example
from .families import FAMILIES, Family
from .gates import Gate, GatedAdapters, Site
from .loop import Trained, train
from .progress import Callback, Event
from .recipes import Recipe, Row
from .state import LoraState, lora_state, metadata_of

__all__ = [
    "FAMILIES",
    "Callback",
    "Denoiser",
    "Event",
    "Example",
    "Family",
    "Gate",
    "GatedAdapters",
    "LoraState",
    "Recipe",
    "Row",
    "Site",
    "Trained",
    "TrainingConfig",
    "TrainingSettings",
    "lora_state",
    "metadata_of",
    "train",
]
