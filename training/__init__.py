"""The training loop, its recipes and optimizers; it imports only torch and lora_ops."""

from .config import TrainingConfig
from .denoiser import Denoiser, Example
from .families import FAMILIES, Family
from .files.checkpoint import Checkpoint
from .files.lora_state import LoraState, lora_state, metadata_of
from .gates import Gate, GatedAdapters, Site
from .loop import train
from .progress import Callback, Event
from .recipes import Recipe, Row
from .session import Session, Trained
from .settings import TrainingSettings

__all__ = [
    "FAMILIES",
    "Callback",
    "Checkpoint",
    "Denoiser",
    "Event",
    "Example",
    "Family",
    "Gate",
    "GatedAdapters",
    "LoraState",
    "Recipe",
    "Row",
    "Session",
    "Site",
    "Trained",
    "TrainingConfig",
    "TrainingSettings",
    "lora_state",
    "metadata_of",
    "train",
]
