"""A concept drawn without guidance while the inputs of the denoiser's layers are watched."""

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
from .text import drawing_prompts, encode


@dataclass(frozen=True)
class Drawing:
    """How concepts are drawn for the statistics.

    Args:
        steps: Of the sampler, and noise levels at which pictures are seen.
        size: Side of the square pictures, in pixels.
        seed: Of the noise; every concept and prompt has its own.
    """

    steps: int
    size: int
    seed: int


def evaluations(concept: Concept, drawing: Drawing) -> int:
    """Return how often the model runs for a concept."""
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
    """Draw every prompt of a concept once, without guidance and negative prompt, seeded.

    Where the concept has pictures, these are seen under noise instead, one level per step.

    Args:
        model: With the changes on it that the concept is to be drawn with.
        clip: The same.
        vae: For pictures.
        family: Of the model.
        concept: What is drawn.
        drawing: How.
        watch: Of the denoiser's layers.
        on_step: Called after every step.

    Raises:
        ValueError: The concept has pictures and the VAE is none of this model's, or an input is
            not finite.
    """
    bare = Concept(
        concept.name, concept.class_words, concept.embeddings, prompts=concept.prompts or ("-",)
    )
    applied, text = apply_concepts(model, clip, [bare], 0.0, 0.0)
    pictures = _pictures(applied, vae, concept, drawing.size)
    sampling = family.samplings.fusion
    sampler = _SeenUnderNoise() if concept.images is not None else _sampler(sampling)

    def step(*args: Any) -> None:
        on_step()

    for number, prompt in enumerate(drawing_prompts(concept)):
        positive = with_guidance(encode(text, concept, prompt), family.samplings)
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
    """Return the latents that sampling begins from: empty ones, or those of the pictures."""
    if concept.images is None:
        return [empty_latent(model, (side, side))]
    require_own_vae(model, vae)
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


class _SeenUnderNoise(comfy.samplers.KSAMPLER):
    """No sampler: the model sees the given latent under each noise level once."""

    def __init__(self) -> None:
        super().__init__(_see)


def _see(
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
