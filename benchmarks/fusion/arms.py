"""Define eight separately trained subjects, and the ways to combine them in one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pack.nodes.concepts.apply import apply_concepts
from pack.nodes.concepts.train import ConceptTrainer
from pack.nodes.fusion.as_concept import concept_for_fusion
from pack.nodes.fusion.plan import FusionRequest
from pack.nodes.fusion.run import Fusion, fuse
from pack.nodes.lora.apply import apply_lora
from pack.nodes.plain.train import PlainTrainer
from pack.nodes.text.concept_prompt import encode_concept_prompt
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.run import run_training
from pack.training import TrainingSettings
from pack.training.files.concept import Concept
from pack.training.recipes.single import LORA

import nodes

from ..shared.subjects import BUDGET as ALONE_BUDGET
from ..shared.subjects import PICTURES, Subject
from ..shared.toy_base import CFG, SAMPLER, SCHEDULER, STEPS, ToyBase, image_of
from ..toyworld.scenes import BOAT_SCENES
from ..toyworld.world import (
    BACKGROUNDS,
    BASE_CLASSES,
    COLOURS,
    HELD_OUT_STYLES,
    Scene,
    Thing,
    caption,
)

BUDGET = replace(ALONE_BUDGET, rank=16)
# Subjects that will be fused train only the keys, values and outputs of cross-attention.
# Self-attention and the queries of cross-attention have inputs that all subjects share, on which
# the subjects' changes conflict. Two subjects that changed all attention layers fell from 0.78 and
# 0.99 alone to 0.32 and 0.68 (40 pictures). With the queries, and dampings of 1e-4, 1e-6 and 1e-2,
# two, four and eight fused subjects kept 0.95, 0.75 and 0.40 of their identity alone (100
# pictures); with the present layers and dampings they keep 0.92, 0.76 and 0.53.
LAYERS = "*attn2.to_[kvo]*"
SIDE = 64
DRAWING_STEPS = 20  # sampling steps in which a fusion draws each concept
VERSION = 3  # part of the cache keys; raised when fusion or its measurement changes
STACKED, AVERAGED, AVERAGED_6 = "stacking", "average 1/N", "average 0.6"
FUSED = ("fused (paper)", "fused (own)", "fused (paper), prior prompts")
# Prompts on which a fusion shall preserve the base: one for each of its classes.
PRIOR = tuple(
    f"a {colour} {kind} on {ground}"
    for kind, colour, ground in zip(
        BASE_CLASSES, [*COLOURS, *COLOURS], [*BACKGROUNDS, *BACKGROUNDS], strict=False
    )
)
ALONE, BASE = "alone", "base"
Concepts = tuple[Concept, ...]


@dataclass(frozen=True)
class Learnt:
    """A subject or style that is trained separately and then fused.

    Cache keys contain the ``repr`` of these objects, which includes the names of class and fields.

    Args:
        word: Trigger word, which the text encoder does not know.
        subject: Class with or without a mark; None for a style.
        words: Whether it is a concept with learnt embeddings; otherwise it is an ordinary LoRA.
        style: Name of the style; None for a subject.
    """

    word: str
    subject: Subject | None
    words: bool
    style: str | None = None

    @property
    def name_in_prompts(self) -> str:
        """Return the words by which prompts name it."""
        if self.words:
            return f"<{self.word}>"
        return self.word if self.subject is None else f"{self.word} {self.subject.class_word}"

    def scenes(self) -> list[Scene]:
        """Return the scenes of the training pictures."""
        if self.subject is not None:
            return self.subject.scenes()
        kinds = ("house", "fish", "heart", "cup", "ring", "moon")
        return [
            replace(scene, things=(Thing(kind, scene.things[0].colour),), style=str(self.style))
            for kind, scene in zip(kinds, BOAT_SCENES[:PICTURES], strict=True)
        ]

    def text(self, scene: Scene) -> str:
        """Return the prompt of a scene."""
        if self.subject is not None:
            return self.subject.text(scene, self.name_in_prompts)
        return f"{caption(replace(scene, style='plain'))} in {self.name_in_prompts} style"

    def triggers(self) -> list[str]:
        """Return the trigger prompts for a fusion."""
        if self.subject is None:
            return [
                f"a {kind} in {self.name_in_prompts} style"
                for kind in ("ball", "tree", "cup", "star")
            ]
        scenes = self.scenes()
        return [f"a {self.name_in_prompts}", *(self.text(scenes[number]) for number in (0, 1, 5))]


LEARNT = (
    Learnt("zorp", Subject("boat"), words=True),
    Learnt("quix", Subject("crown"), words=False),
    Learnt("blen", Subject("house", "halo"), words=True),
    Learnt("mival", Subject("fish", "wings"), words=False),
    Learnt("tarn", Subject("arrow"), words=True),
    Learnt("vesk", Subject("umbrella"), words=False),
    Learnt("dulf", Subject("cup", "hat"), words=True),
    Learnt("prell", None, words=False, style=HELD_OUT_STYLES["texture"]),
)


def learn(base: ToyBase, one: Learnt) -> Concept:
    """Return a trained concept for a fusion; a finished training is reused from its run folder."""
    scenes = one.scenes()
    images = [image_of(scene) for scene in scenes]
    captions = [one.text(scene) for scene in scenes]
    with torch.inference_mode():
        if not one.words:
            trainer = PlainTrainer(
                base=Base(base.model, base.clip, base.vae),
                images=images,
                captions=captions,
                steps=BUDGET.steps,
                rank=BUDGET.rank,
                learning_rate=BUDGET.plain_rate,
                seed=0,
                run_name=one.word,
                settings=TrainingSettings(
                    batch_size=2,
                    schedule="linear",
                    timesteps=BUDGET.timesteps,
                    target_pattern=LAYERS,
                ),
            )
            lora = run_training(trainer).loras[LORA]
            (found,) = concept_for_fusion(lora, None, one.triggers(), one.word, 1.0, 1.0, None)
            return found
        trainer = ConceptTrainer(
            base=Base(base.model, base.clip, base.vae),
            images=images,
            name=one.word,
            class_word=one.subject.class_word if one.subject else "",
            captions=captions,
            steps=BUDGET.steps,
            rank=BUDGET.rank,
            word_rate=BUDGET.word_rate,
            text_rate=BUDGET.text_rate,
            learning_rate=BUDGET.denoiser_rate,
            seed=0,
            run_name=one.word,
            templates="as written",
            settings=TrainingSettings(
                batch_size=2,
                precision="bf16",
                timesteps=BUDGET.timesteps,
                target_pattern=LAYERS,
            ),
        )
        found = trainer.concept(run_training(trainer).loras)
        return replace(found, prompts=tuple(one.triggers()))


def fusion_request(base: ToyBase, concepts: Sequence[Concept], **changes: Any) -> FusionRequest:
    """Return the request of a fusion on the toy base, with the node's defaults."""
    values = {
        "activations": "paper",
        "anchor": "base",
        "damping": 0.0,
        "rank": 0,
        "energy": 1.0,
        "steps": DRAWING_STEPS,
        "size": SIDE,
        "seed": 0,
        "prior_prompts": (),
        "prior_weight": 0.2,
        "statistics": "nothing",
        **changes,
    }
    return FusionRequest(model=base.model, clip=base.clip, concepts=concepts, **values)


@dataclass(frozen=True)
class DrawingModel:
    """A model with all concepts applied, ready for sampling.

    Args:
        model: MODEL with all changes applied.
        clip: CLIP with all changes applied.
        concepts: Concepts that prompts may name.
    """

    model: Any
    clip: Any
    concepts: Concepts

    def prompt(self, text: str) -> Any:
        """Return the CONDITIONING of a prompt."""
        return encode_concept_prompt(self.clip, self.concepts, text)


def with_summed_loras(base: ToyBase, concepts: Sequence[Concept], share: float) -> DrawingModel:
    """Return a model with the sum of all LoRAs, each times ``share``, and all learnt words."""
    model, clip = base.model, base.clip
    for concept in concepts:
        strength = share * concept.strength
        model, clip = apply_lora(model, clip, concept.lora, strength, strength)
    bare = tuple(
        Concept(one.name, one.class_words, one.embeddings, prompts=one.prompts) for one in concepts
    )
    return DrawingModel(*apply_concepts(model, clip, bare, 1.0, 1.0), bare)


def with_fusion(
    base: ToyBase, concepts: Sequence[Concept], mode: str, prior: Sequence[str] = ()
) -> tuple[DrawingModel, Fusion]:
    """Return a model with all concepts fused by the pack, and the fusion."""
    with torch.inference_mode():
        done = fuse(fusion_request(base, concepts, activations=mode, prior_prompts=prior))
    return DrawingModel(done.model, done.clip, done.concepts), done


ARMS: dict[str, Callable[[ToyBase, Sequence[Concept]], DrawingModel]] = {
    FUSED[0]: lambda base, concepts: with_fusion(base, concepts, "paper")[0],
    FUSED[1]: lambda base, concepts: with_fusion(base, concepts, "own")[0],
    FUSED[2]: lambda base, concepts: with_fusion(base, concepts, "paper", PRIOR)[0],
    AVERAGED: lambda base, concepts: with_summed_loras(base, concepts, 1.0 / len(concepts)),
    AVERAGED_6: lambda base, concepts: with_summed_loras(base, concepts, 0.6),
    STACKED: lambda base, concepts: with_summed_loras(base, concepts, 1.0),
}


def draw(
    base: ToyBase, drawing_model: DrawingModel, text: str, seed: int, many: int
) -> torch.Tensor:
    """Return ``many`` pictures of one prompt, ``(picture, 64, 64, 3)`` in 0..1."""
    latent = nodes.EmptyLatentImage().generate(SIDE, SIDE, many)[0]
    with torch.inference_mode():
        sampled = nodes.KSampler().sample(
            drawing_model.model,
            seed,
            STEPS,
            CFG,
            SAMPLER,
            SCHEDULER,
            drawing_model.prompt(text),
            drawing_model.prompt(""),
            latent,
        )[0]
        return nodes.VAEDecode().decode(base.vae, sampled)[0].clone()
