"""Define the arms of the study: ways to learn a subject from six pictures and to prompt for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pack.nodes.concepts.apply import apply_concepts
from pack.nodes.concepts.train import LEARNT, ConceptTrainer
from pack.nodes.lora.apply import apply_lora
from pack.nodes.plain.train import PlainTrainer
from pack.nodes.text.concept_prompt import encode_concept_prompt
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.run import run_training
from pack.training import TrainingSettings
from pack.training.files.concept import Concept
from pack.training.recipes.single import LORA

import nodes

from ..shared.subjects import Budget, Subject
from ..shared.toy_base import CFG, SAMPLER, SCHEDULER, STEPS, ToyBase, image_of
from ..toyworld.world import Scene

NAME = "pstch1"  # a word that the text encoder doesn't know
SUBJECTS = (Subject("boat"), Subject("crown"), Subject("house", "halo"), Subject("fish", "wings"))


@dataclass(frozen=True)
class Cell:
    """A subject and a seed, with a cache of the concepts trained for them."""

    base: ToyBase
    budget: Budget
    subject: Subject
    seed: int
    cache: dict[Any, Any] = field(default_factory=dict)

    def concept(self, learnt: str) -> Concept:
        """Return the concept that the pack's trainer learns.

        Args:
            learnt: Parts that are learnt, an option of the trainer.
        """
        if learnt not in self.cache:
            scenes = self.subject.scenes()
            words_alone = learnt == LEARNT[2]
            request = ConceptTrainer(
                base=Base(self.base.model, self.base.clip, self.base.vae),
                images=_images(scenes),
                name=NAME,
                class_word=self.subject.class_word,
                captions=[self.subject.text(scene, f"<{NAME}>") for scene in scenes],
                steps=self.budget.steps,
                rank=self.budget.rank,
                word_rate=self.budget.word_rate,
                text_rate=0.0 if words_alone else self.budget.text_rate,
                learning_rate=0.0 if words_alone else self.budget.denoiser_rate,
                seed=self.seed,
                run_name=f"{self.subject.kind} {self.subject.mark or ''}".strip(),
                templates="as written",
                learnt=learnt,
                settings=TrainingSettings(
                    batch_size=2, precision="bf16", timesteps=self.budget.timesteps
                ),
            )
            with torch.inference_mode():
                self.cache[learnt] = request.concept(run_training(request).loras)
        return self.cache[learnt]

    def plain(self) -> Mapping[str, torch.Tensor]:
        """Return an ordinary LoRA of the denoiser with the same pictures, steps and rank."""
        scenes = self.subject.scenes()
        request = PlainTrainer(
            base=Base(self.base.model, self.base.clip, self.base.vae),
            images=_images(scenes),
            captions=[self.subject.text(scene, self.name_in_prompts) for scene in scenes],
            steps=self.budget.steps,
            rank=self.budget.rank,
            learning_rate=self.budget.plain_rate,
            seed=self.seed,
            run_name="plain",
            settings=TrainingSettings(
                batch_size=2, schedule="linear", timesteps=self.budget.timesteps
            ),
        )
        with torch.inference_mode():
            return run_training(request).loras[LORA]

    @property
    def name_in_prompts(self) -> str:
        """Return the words for the subject in prompts without learnt words."""
        return f"{NAME} {self.subject.class_word}"


def _images(scenes: list[Scene]) -> list[torch.Tensor]:
    return [image_of(scene) for scene in scenes]


PromptEncoder = Callable[[str], Any]  # from a prompt to its CONDITIONING


def _with_concept(cell: Cell, learnt: str, strength: float) -> tuple[Any, str, PromptEncoder]:
    concepts = [cell.concept(learnt)]
    model, clip = apply_concepts(cell.base.model, cell.base.clip, concepts, strength, strength)
    return model, f"<{NAME}>", lambda text: encode_concept_prompt(clip, concepts, text)


def _with_lora(cell: Cell) -> tuple[Any, str, PromptEncoder]:
    model, _ = apply_lora(cell.base.model, None, cell.plain(), 1.0, 0.0)
    return model, cell.name_in_prompts, cell.base.prompt


WORDS_ALONE = "words alone"
# Every arm returns the model, the subject's name in prompts and the prompt encoder.
ARMS: Mapping[str, Callable[[Cell], tuple[Any, str, PromptEncoder]]] = {
    "ED-LoRA": lambda cell: _with_concept(cell, LEARNT[0], 1.0),
    "ED-LoRA, its LoRA at 0": lambda cell: _with_concept(cell, LEARNT[0], 0.0),
    WORDS_ALONE: lambda cell: _with_concept(cell, LEARNT[2], 1.0),
    "plain LoRA": _with_lora,
}


def draw(
    base: ToyBase,
    prepared: tuple[Any, str, PromptEncoder],
    subject: Subject,
    scene: Scene,
    seed: int,
    many: int,
) -> torch.Tensor:
    """Return ``many`` pictures of one prompt, ``(picture, 64, 64, 3)`` in 0..1.

    Args:
        base: The toy base.
        prepared: Model, name of the subject in prompts and prompt encoder of an arm.
        subject: Subject of the pictures.
        scene: Scene of the prompt.
        seed: Seed of the noise.
        many: Number of pictures.
    """
    model, name, encode = prepared
    latent = nodes.EmptyLatentImage().generate(64, 64, many)[0]
    with torch.inference_mode():
        sampled = nodes.KSampler().sample(
            model,
            seed,
            STEPS,
            CFG,
            SAMPLER,
            SCHEDULER,
            encode(subject.text(scene, name)),
            encode(""),
            latent,
        )[0]
        return nodes.VAEDecode().decode(base.vae, sampled)[0].clone()
