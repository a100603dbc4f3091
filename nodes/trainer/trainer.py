"""What the generic run asks of a training method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from comfy.sd import CLIP
from torch import Tensor

from ...training import LoraState, Recipe, Trained, TrainingConfig, TrainingSettings
from ...training.families.defaults import MethodDefaults
from ...training.gates import Layer
from ...training.runs.run_store import StoredRun
from ..bridge.digests import content_digest
from ..pictures.picture import Picture
from ..text.encoder_layers import text_layers
from .preview import PreviewScene
from .request import TrainRequest
from .target_layers import target_layers

SHOWN_PICTURES = 4  # training pictures that a node shows
KEPT_CAPTIONS = 20  # distinct captions in a file's metadata


@dataclass(frozen=True)
class TrainerOutput:
    """What every trainer hands on and shows.

    Args:
        loras: Results by name.
        losses: Curves by name.
        pictures: Training pictures as they were trained, each an IMAGE.
        text: What was trained, from which defaults, and where it lies.
    """

    loras: Mapping[str, LoraState]
    losses: dict[str, list[float]]
    pictures: list[Tensor]
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainer(TrainRequest, ABC):
    """A training method: a node's inputs, and what the run makes of them step by step.

    Properties are worked out once. ``check`` refuses wrong inputs before anything is encoded.
    """

    method: ClassVar[str]
    """Name of the method in metadata and run ids."""

    @property
    @abstractmethod
    def defaults(self) -> MethodDefaults:
        """Return the method's defaults for the family."""

    @abstractmethod
    def check(self) -> None:
        """Check all inputs.

        Raises:
            ValueError: One is not what it must be; the message says which and what to do.
        """

    @abstractmethod
    def pieces(self) -> dict[str, Any]:
        """Return what decides the result, by name, excluding the number of steps."""

    @abstractmethod
    def prepare(self, begun_for: int) -> tuple[Recipe, PreviewScene]:
        """Return the encoded recipe and what previews show; the denoiser is not loaded yet.

        Args:
            begun_for: Steps that were wished for when the run began.
        """

    @abstractmethod
    def results(self, trained: Trained, begun_for: int, identity: str) -> dict[str, LoraState]:
        """Return the results by name.

        Args:
            trained: What was learnt.
            begun_for: Steps that were wished for when the run began.
            identity: The run's id.
        """

    @abstractmethod
    def lines(self, run: StoredRun) -> list[str]:
        """Return the lines that the node shows of a finished run."""

    @abstractmethod
    def pictures(self) -> list[Tensor]:
        """Return training pictures as they were trained, each an IMAGE."""

    def described(self) -> dict[str, Any]:
        """Return plain values about the run for its folder."""
        return {"family": self.base.family.name}

    def decided_by(self, begun_for: int) -> object:
        """Return what the steps wished for at the beginning decide of a run."""
        return None

    @cached_property
    def run_settings(self) -> TrainingSettings:
        """Return the user's settings with what the method sets in their place."""
        return self.settings

    @cached_property
    def resolution(self) -> int:
        """Return the resolution of the training pictures."""
        return self.settings.resolution or self.base.family.resolution

    @cached_property
    def config(self) -> TrainingConfig:
        """Return the run with every default in its place."""
        return self.resolved()

    def resolved(
        self,
        rank: int = 0,
        timesteps: str = "uniform",
        packing: Literal["batched", "sequential"] = "batched",
    ) -> TrainingConfig:
        """Return the run with every default in its place.

        Args:
            rank: LoRA rank; 0 is the input's, or the default.
            timesteps: How noise levels are drawn where the settings leave it to the method.
            packing: How a step's rows are run.

        Raises:
            ValueError: A value is outside its range; the message names it.
        """
        defaults = self.defaults
        return TrainingConfig.of(
            self.run_settings,
            steps=self.steps or defaults.steps,
            rank=rank or self.rank or defaults.rank,
            learning_rate=self.learning_rate or defaults.learning_rate,
            seed=self.seed,
            weight_decay=defaults.weight_decay,
            timesteps=timesteps,
            packing=packing,
        )

    @property
    def text_encoder(self) -> CLIP | None:
        """Return the text encoder where it takes part in every step."""
        return self.base.clip if self.settings.text_encoder_rate else None

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Return the layers that are trained: the denoiser's, then the text encoder's."""
        settings, rate = self.run_settings, self.settings.text_encoder_rate
        return {
            **target_layers(self.base.layers, settings.targets, settings.target_pattern),
            **(text_layers(self.base.clip, rate) if rate else {}),
        }

    def base_pieces(self, unread: Collection[str] = (), **texts: Sequence[str]) -> dict[str, Any]:
        """Return the pieces of a run's id that all methods have.

        The tokens are a piece because they hold the embeddings that a text names.

        Args:
            unread: What encodes nothing in this run, of ``clip`` and ``vae``.
            texts: What the text encoder reads, by the piece's name.
        """
        base, config = self.base, self.config
        read = {text for several in texts.values() for text in several}
        tokens = {text: content_digest(base.clip.tokenize(text)) for text in read}
        return {
            "method": self.method,
            **{name: list(several) for name, several in texts.items()},
            "tokens": [tokens[text] for several in texts.values() for text in several],
            "settings": {
                **self.run_settings.identity_fields(),
                "rank": config.rank,
                "learning_rate": config.learning_rate,
                "weight_decay": config.weight_decay,
                "timesteps": config.timesteps,
                "resolution": self.resolution,
            },
            "seed": self.seed,
            "model": base.model_digest,
            **({} if "clip" in unread else {"clip": base.clip_digest}),
            **({} if "vae" in unread else {"vae": base.vae_digest}),
        }

    def metadata(self, steps: int, identity: str) -> dict[str, Any]:
        """Return the metadata that the LoRAs of every trainer have.

        Args:
            steps: Steps that the run took.
            identity: The run's id.
        """
        family, config = self.base.family, self.config
        return {
            "modelspec.architecture": family.architecture,
            "ss_base_model_version": family.base_version,
            "pastiche.method": self.method,
            "pastiche.base_family": family.name,
            "pastiche.run_id": identity,
            "pastiche.steps": steps,
            "pastiche.rank": config.rank,
            "pastiche.learning_rate": config.learning_rate,
            "pastiche.seed": config.seed,
            "pastiche.resolution": self.resolution,
            "pastiche.flip": self.settings.flip,
            "pastiche.base_patched": bool(self.base.model.patches),
            "pastiche.config": {
                **self.settings.identity_fields(),
                **config.as_json(),
                "steps": steps,
            },
        }

    def values_line(self, steps: int) -> str:
        """Return the line of values, with the source of those that are the family's defaults."""

        def shown(label: str, value: str, given: float) -> str:
            return f"{label} {value}" if given else f"{label} {value} (default: {source})"

        config, source = self.config, self.defaults.source
        values = (
            shown("steps", str(steps), self.steps),
            shown("rank", str(config.rank), self.rank),
            shown("learning rate", f"{config.learning_rate:g}", self.learning_rate),
        )
        return f"{self.base.family.name}: {', '.join(values)}"

    def warnings(self) -> list[str]:
        """Return what a user must know of training on this family."""
        if self.base.family.distilled:
            return ["if this model is guidance-distilled, training it may lower its quality"]
        return []


def picture_pieces(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return the pieces of a run's id that say its pictures and masks."""
    pieces = {"pictures": [content_digest(picture.image) for picture in pictures]}
    if any(picture.mask is not None for picture in pictures):
        pieces["masks"] = [content_digest(picture.mask) for picture in pictures]
    return pieces
