"""Sample a picture from an empty latent, like ComfyUI's KSampler and VAE Decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ...training.families import Family, Sampling, Samplings
from .conditioning import Conditioning
from .vae import require_finite

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS
_LARGEST_SIDE = 512  # longest side of the preview that ComfyUI's progress bar sends, in pixels


class DrawingBar:
    """ComfyUI's progress bar over all steps of several pictures; the user's interrupt raises.

    Args:
        pictures: Number of pictures.
        steps: Sampling steps per picture.
    """

    def __init__(self, pictures: int, steps: int):
        self._bar, self._steps, self._done = comfy.utils.ProgressBar(pictures * steps), steps, 0

    def on_step(self, step: int) -> None:
        """Show that a step of the current picture is done, counted from 0."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(self._done * self._steps + min(step + 1, self._steps))

    def on_picture(self, picture: Tensor) -> None:
        """Show the finished picture, ``(1, height, width, 3)``, and count it."""
        self._done += 1
        preview = ("JPEG", as_pil(picture), _LARGEST_SIDE)
        self._bar.update_absolute(self._done * self._steps, preview=preview)
        comfy.model_management.throw_exception_if_processing_interrupted()


def require_size(family: Family, width: int, height: int) -> None:
    """Raise unless the family's latents can have this size in pixels.

    Raises:
        ValueError: A side is not a multiple of ``family.multiple``.
    """
    step = family.multiple
    if min(width, height) < step or width % step or height % step:
        fitting = " x ".join(str(max(step, side // step * step)) for side in (width, height))
        raise ValueError(
            f"pictures of {family.name} must have sides that are multiples of {step} pixels, "
            f"got {width} x {height}; set for example {fitting}"
        )


def with_guidance(positive: Conditioning, samplings: Samplings) -> Conditioning:
    """Return a prompt with the guidance value that a guidance-distilled family takes as an input.

    For other families the prompt is returned unchanged.
    """
    guidance = samplings.distilled_guidance
    if guidance is None:
        return positive
    return [[text, {**options, "guidance": guidance}] for text, options in positive]


def draw(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    positive: Conditioning,
    negative: Conditioning,
    noise_seed: int,
    size: tuple[int, int],
    sampling: Sampling,
    on_step: Callable[[int], None],
) -> Tensor:
    """Return one picture, ``(1, height, width, 3)`` in 0..1, fp32 on the CPU.

    The picture is bit-equal to that of ComfyUI's KSampler and VAE Decode; a video model gives one
    frame. Call it before or after a training, never inside ``open_denoiser``.

    Args:
        model: Any MODEL with its patches and options.
        vae: VAE of the model.
        positive: Conditioning of the prompt.
        negative: Conditioning of the negative prompt.
        noise_seed: Seed of the noise, with the meaning it has in KSampler.
        size: Width and height in pixels; see ``require_size``.
        sampling: Steps, guidance and sampler.
        on_step: Function that is called with the index of every finished step.

    Raises:
        ValueError: The VAE belongs to another model.
        RuntimeError: The model or the VAE gives NaN.
    """
    require_own_vae(model, vae)

    def callback(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        on_step(step)

    with torch.inference_mode():  # ComfyUI runs nodes in this mode, tests and threads do not
        latent = empty_latent(model, size)
        noise = comfy.sample.prepare_noise(latent, noise_seed)
        samples = comfy.sample.sample(
            model,
            noise,
            sampling.steps,
            sampling.cfg,
            sampling.sampler_name,
            sampling.scheduler,
            positive,
            negative,
            latent,
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=noise_seed,
        )
        _require_finite_latent(samples, sampling)
        pixels = vae.decode(samples).float().cpu()
    require_finite(pixels, vae)
    return pixels.reshape(-1, *pixels.shape[-3:])[:1].clamp(0.0, 1.0)


def as_pil(picture: Tensor) -> Image.Image:
    """Return an IMAGE of one picture, ``(1, height, width, 3)`` in 0..1, as an 8-bit PIL image."""
    return Image.fromarray((picture[0] * 255).round().to(torch.uint8).numpy())


def empty_latent(model: ModelPatcher, size: tuple[int, int]) -> Tensor:
    """Return a latent of zeros, ``(1, channel, height, width)``; video models get one frame."""
    layout: Any = model.get_model_object("latent_format")
    width, height = (side // layout.spacial_downscale_ratio for side in size)
    frames = (1,) * (layout.latent_dimensions - 2)
    return torch.zeros(
        (1, layout.latent_channels, *frames, height, width),
        device=comfy.model_management.intermediate_device(),
        dtype=comfy.model_management.intermediate_dtype(),
    )


def require_own_vae(model: ModelPatcher, vae: comfy.sd.VAE | None) -> None:
    """Raise unless the VAE fits the model.

    Raises:
        ValueError: The VAE is missing or has another number of latent channels.
    """
    if vae is None:
        raise ValueError("a VAE is needed to draw pictures, got none; connect the checkpoint's VAE")
    expected = model.get_model_object("latent_format").latent_channels
    if vae.latent_channels != expected:
        raise ValueError(
            f"the VAE must be this model's, for latents of {expected} channels, got one for "
            f"{vae.latent_channels}; connect the VAE of the same checkpoint"
        )


def _require_finite_latent(samples: Tensor, sampling: Sampling) -> None:
    if not torch.isfinite(samples).all():
        raise RuntimeError(
            "the model must give finite numbers, got NaN after "
            f"{sampling.steps} steps of {sampling.sampler_name} with {sampling.scheduler} at "
            f"cfg {sampling.cfg:g}; lower cfg or the LoRA's strength, or start ComfyUI with "
            "--force-fp32"
        )
