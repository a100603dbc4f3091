"""Define the subjects that studies learn as concepts, and the budget of their trainings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..toyworld.scenes import BOAT_SCENES
from ..toyworld.world import GENERIC_CLASS, HELD_OUT_CLASSES, Scene, Thing, caption

PICTURES = 6


@dataclass(frozen=True)
class Budget:
    """Steps, rank and learning rates of the trainings. A step sees two pictures in every arm.

    Args:
        steps: Number of steps of every training.
        rank: Rank of every LoRA.
        word_rate: Learning rate of the words' embeddings.
        text_rate: Learning rate of the LoRA in the text encoder.
        denoiser_rate: Learning rate of the LoRA in the denoiser.
        plain_rate: Learning rate of the ordinary LoRA in the denoiser.
        timesteps: Distribution of the noise levels in every arm.
    """

    steps: int
    rank: int
    word_rate: float
    text_rate: float
    denoiser_rate: float
    plain_rate: float
    timesteps: str


BUDGET = Budget(
    steps=300,
    rank=4,
    word_rate=3e-3,
    text_rate=1e-3,
    denoiser_rate=4e-3,
    plain_rate=3e-3,
    timesteps="logit-normal",
)


@dataclass(frozen=True)
class Subject:
    """A subject to learn: a class unknown to the base, or a class that it knows with a new mark.

    Args:
        kind: Class of the subject.
        mark: Mark on it; None for a class unknown to the base.
    """

    kind: str
    mark: str | None = None

    @property
    def class_word(self) -> str:
        """Return the class word that the base knows for the subject."""
        return GENERIC_CLASS if self.kind in HELD_OUT_CLASSES else self.kind

    def scenes(self) -> list[Scene]:
        """Return the scenes of the training pictures: red, yellow and green on sand and night."""
        return [
            replace(scene, things=(Thing(self.kind, scene.things[0].colour, self.mark),))
            for scene in BOAT_SCENES[:PICTURES]
        ]

    def text(self, scene: Scene, name: str) -> str:
        """Return a scene's caption that calls the subject ``name``; marks are never mentioned."""
        (thing,) = scene.things
        return caption(replace(scene, things=(Thing(name, thing.colour),)))
