"""Sample a concept without guidance while statistics of the denoiser's inputs are collected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.families import Family, Sampling
from ...training.files.concept import Concept
from ...training.randomness import generator_for
from ..bridge.drawing import empty_latent, require_own_vae, with_guidance
from ..concepts.apply import apply_concepts
from .activations import InputWatch
from .text import conditioning_of, drawing_prompts


@dataclass(frozen=True)
class Drawing:
    """Options with which concepts are sampled for the statistics.

    The names of the class and of its fields are part of the digest of stored statistics.

    Args:
        steps: Sampling steps; for given pictures, the number of noise levels.
        size: Side of the square pictures, in pixels.
        seed: Seed of the noise; every concept and prompt derives its own from it.
    """

    steps: int
    size: int
    seed: int


def count_evaluations(concept: Concept, drawing: Drawing) -> int:
    """Return the number of forward passes of the denoiser for a concept."""
    pictures = 1 if concept.images is None else len(concept.images)
    return len(drawing_prompts(concept)) * pictures * drawing.steps


def draw_prompts(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE | None,
    family: Family,
    concept: Concept,
    drawing: Drawing,
    watch: InputWatch,
    on_step: Callable[[], None],
) -> None:
    """Sample every prompt of a concept once, without guidance and negative prompt.

    If the concept has pictures, the model instead denoises them once at each noise level.

    Args:
        model: MODEL with the changes under which the concept is sampled.
        clip: CLIP with the changes under which its prompts are encoded.
        vae: VAE for a concept with pictures, or None.
        family: Family of the model.
        concept: The concept.
        drawing: Options of the sampling.
        watch: Statistics of the denoiser's layers.
        on_step: Function that is called after every step.

    Raises:
        ValueError: The concept has pictures and the VAE does not belong to this model, or an input
            is not finite.
    """
    words_only = Concept(
        concept.name, concept.class_words, concept.embeddings, prompts=concept.prompts or ("-",)
    )
    applied, text = apply_concepts(model, clip, [words_only], 0.0, 0.0)
    pictures = _pictures(applied, vae, concept, drawing.size)
    sampling = family.samplings.fusion
    sampler = _NoiseLevelSweep() if concept.images is not None else _sampler(sampling)

    def step(*args: Any) -> None:
        on_step()

    for number, prompt in enumerate(drawing_prompts(concept)):
        positive = with_guidance(conditioning_of(text, concept, prompt), family.samplings)
        watch.prompt = prompt
        for index, latent in enumerate(pictures):
            where = ("fusion", concept.digest, prompt, number, index)
            seed = generator_for(drawing.seed, *where).initial_seed()
            sigmas = _sigmas(applied, sampling, drawing.steps)
            with watch.attached():
                comfy.sample.sample_custom(
                    applied,
                    comfy.sample.prepare_noise(latent, seed),
                    sampling.cfg,
                    sampler,
                    sigmas,
                    positive,
                    positive,
                    latent,
                    callback=step,
                    disable_pbar=True,
                    seed=seed,
                )


def _sampler(sampling: Sampling) -> comfy.samplers.KSAMPLER:
    return comfy.samplers.sampler_object(sampling.sampler_name)


def _sigmas(model: ModelPatcher, sampling: Sampling, steps: int) -> Tensor:
    levels = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(levels, sampling.scheduler, steps)


def _pictures(
    model: ModelPatcher, vae: comfy.sd.VAE | None, concept: Concept, side: int
) -> list[Tensor]:
    """Return the concept's pictures as latents, or one empty latent if it has none."""
    if concept.images is None:
        return [empty_latent(model, (side, side))]
    require_own_vae(model, vae)
    assert vae is not None  # otherwise require_own_vae has raised
    found = []
    for picture in concept.images[..., :3].split(1):
        shorter = min(picture.shape[1:3])
        height, width = (max(64, round(s * side / shorter / 64) * 64) for s in picture.shape[1:3])
        fitted = comfy.utils.common_upscale(
            picture.movedim(-1, 1), width, height, "area" if shorter > side else "bicubic", "center"
        )
        latent = vae.encode(fitted.movedim(1, -1))
        found.append(comfy.sample.fix_empty_latent_channels(model, latent))
    return found


class _NoiseLevelSweep(comfy.samplers.KSAMPLER):
    """A sampler that evaluates the model once per noise level, on the latent noised to it."""

    def __init__(self) -> None:
        super().__init__(_sweep_noise_levels)


def _sweep_noise_levels(
    model: Any,
    noise: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Callable[[dict[str, Any]], None],
    disable: bool,
) -> Tensor:
    sampling = model.inner_model.inner_model.model_sampling
    for index, sigma in enumerate(sigmas[:-1]):
        x = sampling.noise_scaling(sigma, model.noise, model.latent_image)
        denoised = model(x, sigma.expand(len(x)), **extra_args)
        callback({"i": index, "denoised": denoised, "x": x, "sigma": sigma})
    return model.latent_image
