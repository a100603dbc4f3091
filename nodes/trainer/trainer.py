"""The base class of training methods, as the shared run uses them."""

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
    """The results of a trainer and the display of its node.

    Args:
        loras: Resulting LoRAs by name.
        losses: Loss curves by name.
        pictures: Training pictures in the form they were trained, each an IMAGE.
        text: Report with the used values and defaults, the pictures and the path of the result.
    """

    loras: Mapping[str, LoraState]
    losses: dict[str, list[float]]
    pictures: list[Tensor]
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainer(TrainRequest, ABC):
    """A training method with the inputs of its node.

    Properties are computed once. ``check`` raises for invalid inputs before anything is encoded.
    """

    method: ClassVar[str]  # name of the method in metadata and run ids

    @property
    @abstractmethod
    def defaults(self) -> MethodDefaults:
        """Return the defaults of the method for the base's family."""

    @abstractmethod
    def check(self) -> None:
        """Raise unless all inputs are valid.

        Raises:
            ValueError: An input is not valid.
        """

    @abstractmethod
    def pieces(self) -> dict[str, Any]:
        """Return all values that determine the result, by name, except the number of steps."""

    @abstractmethod
    def prepare(self, begun_for: int) -> tuple[Recipe, PreviewScene]:
        """Return the encoded recipe and the scene of the previews, before the denoiser is loaded.

        Args:
            begun_for: Number of steps that was requested when the run began.
        """

    @abstractmethod
    def results(self, trained: Trained, begun_for: int, identity: str) -> dict[str, LoraState]:
        """Return the resulting LoRAs by name.

        Args:
            trained: Trained adapters.
            begun_for: Number of steps that was requested when the run began.
            identity: Id of the run.
        """

    @abstractmethod
    def lines(self, run: StoredRun) -> list[str]:
        """Return the lines about a finished run that the node shows."""

    @abstractmethod
    def pictures(self) -> list[Tensor]:
        """Return training pictures in the form they were trained, each an IMAGE."""

    def details(self) -> dict[str, Any]:
        """Return further values about the run, which are stored in its folder as JSON."""
        return {"family": self.base.family.name}

    def choices_at_start(self, begun_for: int) -> object:
        """Return the choices that depend on the number of steps requested when the run began."""
        return None

    @cached_property
    def run_settings(self) -> TrainingSettings:
        """Return the user's settings, changed where the method overrides them."""
        return self.settings

    @cached_property
    def resolution(self) -> int:
        """Return the resolution of the training pictures."""
        return self.settings.resolution or self.base.family.resolution

    @cached_property
    def config(self) -> TrainingConfig:
        """Return the configuration of the run with all defaults filled in."""
        return self.resolve_config()

    def resolve_config(
        self,
        rank: int = 0,
        timesteps: str = "uniform",
        packing: Literal["batched", "sequential"] = "batched",
    ) -> TrainingConfig:
        """Return the configuration of the run with all defaults filled in.

        Args:
            rank: LoRA rank; 0 uses the input, or else the default.
            timesteps: Distribution of the timesteps if the settings leave it to the method.
            packing: Packing of a step's rows into forward passes.

        Raises:
            ValueError: A value is outside its range.
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
        """Return the text encoder if it takes part in every step, or None."""
        return self.base.clip if self.settings.text_encoder_rate else None

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Return the layers to train: those of the denoiser, then those of the text encoder."""
        settings, rate = self.run_settings, self.settings.text_encoder_rate
        return {
            **target_layers(self.base.layers, settings.targets, settings.target_pattern),
            **(text_layers(self.base.clip, rate) if rate else {}),
        }

    def base_pieces(self, unused: Collection[str] = (), **texts: Sequence[str]) -> dict[str, Any]:
        """Return the pieces of a run's id that all methods share.

        Tokens are included because they contain the embeddings that a text refers to.

        Args:
            unused: Those of ``clip`` and ``vae`` that encode nothing in this run.
            texts: Texts that the text encoder encodes, by the piece's name.
        """
        base, config = self.base, self.config
        distinct = {text for several in texts.values() for text in several}
        tokens = {text: content_digest(base.clip.tokenize(text)) for text in distinct}
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
            **({} if "clip" in unused else {"clip": base.clip_digest}),
            **({} if "vae" in unused else {"vae": base.vae_digest}),
        }

    def metadata(self, steps: int, identity: str) -> dict[str, Any]:
        """Return the metadata that the LoRAs of all trainers share.

        Args:
            steps: Number of steps that the run took.
            identity: Id of the run.
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
        """Return the line with the used values, and with the origin of defaults among them."""

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
        """Return warnings about training on this family."""
        if self.base.family.distilled:
            return ["if this model is guidance-distilled, training it may lower its quality"]
        return []


def picture_pieces(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return the pieces of a run's id for its pictures and masks."""
    pieces = {"pictures": [content_digest(picture.image) for picture in pictures]}
    if any(picture.mask is not None for picture in pictures):
        pieces["masks"] = [content_digest(picture.mask) for picture in pictures]
    return pieces
