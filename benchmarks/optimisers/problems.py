"""Define three trainings on the toy base, and the held-out loss that compares optimisers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pack.lora_ops import LowRank, PartlyLearnable
from pack.lora_ops.halves import join_halves
from pack.nodes.trainer.target_layers import training_sites
from pack.training import Denoiser, Example, Gate, Session, TrainingConfig
from pack.training.loop import take_step
from pack.training.objective import output_errors
from pack.training.recipes import Make
from pack.training.recipes.break_for_make import Half
from pack.training.recipes.rows import Recipe
from pack.training.recipes.single import Single

from ..toyworld.scenes import BOAT_SCENES, PAIR_SCENES
from ..toyworld.world import BASE_STYLES, HELD_OUT_STYLES, PLAIN, Scene, Thing

RANK, ROWS = 16, 4
LEVELS, EVALUATION_SEED = 8, 77_000
HALF_STEPS, HALF_RATE = 200, 1e-3
PROBLEMS = {
    "plain": "a plain LoRA of a class that the base has never seen",
    "half": "a content half of that class, beside base classes in other styles",
    "make": "this half joined with a style half of a style never seen, tuned on both",
}
STYLE = HELD_OUT_STYLES["texture"]
_COLOURS_AND_GROUNDS = (("red", "sand"), ("yellow", "night"), ("green", "snow"), ("blue", "brick"))


@dataclass
class Problem:
    """A recipe and the examples on which its held-out loss is measured.

    Args:
        recipe: Recipe of the training, with four rows a step.
        examples: Training examples by the name of the recipe's rows that use them.
    """

    recipe: Recipe
    examples: Mapping[str, Sequence[Example]]


@dataclass
class ProblemFactory:
    """A factory of problems on the toy base.

    Args:
        base: The toy base.
        denoiser: Denoiser of the base, opened for training.
        halves: Factors of the two finished halves by role and layer; ``make`` starts from them.
    """

    base: Any
    denoiser: Denoiser
    halves: dict[str, dict[str, LowRank]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites = training_sites(self.denoiser.patcher, "attention")
        self.contents = self._examples(BOAT_SCENES)
        self.styles = self._examples([scene.with_style(STYLE) for scene in PAIR_SCENES])
        self.other_styles = self._examples(_other_styles())
        self.other_contents = self._examples(_other_contents())

    def problem(self, name: str) -> Problem:
        """Return a problem by its key in ``PROBLEMS``."""
        if name == "plain":
            return Problem(Single(self.contents, ROWS), {"lora": self.contents})
        if name == "make":
            joined = join_halves(self.halves["content"], self.halves["style"])
            recipe = Make(self.contents, self.styles, PartlyLearnable(given=joined), ROWS // 2)
            return Problem(recipe, {"content": self.contents, "style": self.styles})
        return self.half("content")

    def half(self, role: str) -> Problem:
        """Return the problem of a content or style half; the partner's learning rate is lower."""
        main, others = self.contents, self.other_styles
        if role == "style":
            main, others = self.styles, self.other_contents
        return Problem(Half(role, main, others), {"main": main, "auxiliary": others})

    def learn_half(self, role: str) -> dict[str, LowRank]:
        """Return the finished half of a role, trained with AdamW, by layer."""
        config = run_config("AdamW", HALF_RATE, HALF_STEPS)
        session = Session(self.denoiser, self.sites, self.half(role).recipe, config)
        with session.gates.attached():
            for _ in range(HALF_STEPS):
                take_step(session, self.half(role).recipe)
        return dict(session.trained().adapters["half"])

    def loss_curve(
        self, name: str, optimizer: str, rate: float, steps: int, every: int
    ) -> dict[str, list]:
        """Return steps and held-out losses, every few steps, until the loss is no longer finite.

        Args:
            name: Key of the problem.
            optimizer: Name of the optimiser.
            rate: Learning rate.
            steps: Number of steps.
            every: Number of steps between two entries.
        """
        problem = self.problem(name)
        config = run_config(optimizer, rate, steps)
        session = Session(self.denoiser, self.sites, problem.recipe, config)
        found: dict[str, list] = {"steps": [], "losses": []}
        with session.gates.attached():
            for step in range(steps + 1):
                if step % every == 0:
                    found["steps"].append(step)
                    found["losses"].append(self.held_out_loss(session, problem))
                try:
                    if step < steps:
                        take_step(session, problem.recipe)
                except RuntimeError as error:
                    if "finite number" not in str(error):
                        raise
                    break
        return found

    def held_out_loss(self, session: Session, problem: Problem) -> float:
        """Return the mean loss over pictures and fixed noise levels, with noise unseen in training.

        All kinds of rows have the same weight, as in the recipes.
        """
        means = []
        with torch.no_grad():
            for examples in problem.examples.values():
                errors = [self._errors(session, example, n) for n, example in enumerate(examples)]
                means.append(torch.cat(errors).mean().item())
        return sum(means) / len(means)

    def _errors(self, session: Session, example: Example, number: int) -> torch.Tensor:
        """Return the errors of one picture at all noise levels, ``(level,)``."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED + number)
        latent = example.latent.expand(LEVELS, *example.latent.shape)
        noise = torch.randn(latent.shape, generator=generator)
        sigma = self.denoiser.sigma_at((torch.arange(LEVELS) + 0.5) / LEVELS)
        x = self.denoiser.noised(latent, noise, sigma)
        gates = {name: Gate() for name in session.adapters}
        with session.gates.gated([gates] * LEVELS):
            denoised = self.denoiser.denoise(x, sigma, [example.cond] * LEVELS)
        return output_errors(denoised, latent, self.denoiser.output_scale(sigma, latent))

    def _examples(self, scenes: Sequence[Scene]) -> list[Example]:
        return [self.base.example(scene) for scene in scenes]


class Stopwatch:
    """A timer of every step that a session's optimiser takes, in seconds."""

    def __init__(self, session: Session) -> None:
        self.laps: list[float] = []
        step = session.optimizer.step

        def timed() -> None:
            started = time.perf_counter()
            step()
            self.laps.append(time.perf_counter() - started)

        session.optimizer.step = timed


def run_config(optimizer: str, rate: float, steps: int) -> TrainingConfig:
    """Return a configuration without weight decay, clipping or schedule."""
    return TrainingConfig(
        steps=steps, rank=RANK, learning_rate=rate, seed=0, optimizer=optimizer, weight_decay=0.0
    )


def _other_styles() -> list[Scene]:
    """Return scenes of base classes in every base style except the plain one."""
    styles = [style for style in BASE_STYLES if style != PLAIN]
    kinds = ("fish", "house", "cup", "star", "tree", "moon", "ring", "heart")
    return [
        Scene(
            (Thing(kind, _COLOURS_AND_GROUNDS[n % 4][0]),),
            _COLOURS_AND_GROUNDS[n % 4][1],
            styles[n % 5],
            seed=50 + n,
        )
        for n, kind in enumerate(kinds)
    ]


def _other_contents() -> list[Scene]:
    """Return scenes of base classes in the plain style."""
    return [
        Scene(
            (Thing(kind, _COLOURS_AND_GROUNDS[n % 4][0]),),
            _COLOURS_AND_GROUNDS[n % 4][1],
            seed=70 + n,
        )
        for n, kind in enumerate(("star", "tree", "moon", "ring", "ball", "cross", "fish", "cup"))
    ]
