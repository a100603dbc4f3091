"""Convert conditioning and latents to the form in which training examples hold them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.conds import CONDRegular
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..bridge.conditioning import Conditioning


@dataclass(frozen=True)
class Framing:
    """SDXL's size and crop conditioning of a training picture, in pixels.

    Args:
        width: Width of the picture before cropping.
        height: Height of the picture before cropping.
        crop_x: Left edge of the crop.
        crop_y: Upper edge of the crop.
        target_width: Width of the crop.
        target_height: Height of the crop.
    """

    width: int
    height: int
    crop_x: int
    crop_y: int
    target_width: int
    target_height: int

    def as_options(self) -> dict[str, int]:
        """Return the six numbers under ComfyUI's names."""
        return {
            "width": self.width,
            "height": self.height,
            "crop_w": self.crop_x,
            "crop_h": self.crop_y,
            "target_width": self.target_width,
            "target_height": self.target_height,
        }


@dataclass(frozen=True)
class TrainingCond:
    """One encoded caption in the form of the model's inputs, on the CPU.

    Args:
        model_conds: ComfyUI's condition objects by the model's argument name.
    """

    model_conds: Mapping[str, CONDRegular]

    def shape_key(self) -> Hashable:
        """Return a key that is equal for conditions that fit into one forward pass."""
        return tuple(sorted((name, _shape(cond.cond)) for name, cond in self.model_conds.items()))


def training_latent(model: ModelPatcher, samples: Tensor) -> Tensor:
    """Return a VAE's latents ``(batch, channel, ...)`` in the model's scale, fp32 on the CPU."""
    with torch.inference_mode(False), torch.no_grad():
        return model.model.process_latent_in(samples.detach().clone().float().cpu())


def training_cond(
    model: ModelPatcher,
    conditioning: Conditioning,
    latent: Tensor,
    framing: Framing | None = None,
) -> TrainingCond:
    """Return a caption's conditions for training on one picture.

    Flux's distilled guidance is set to 1, so the model learns the velocity without guidance.

    Args:
        model: The base model, which need not be loaded.
        conditioning: Conditioning of the caption, with one entry.
        latent: ``(channel, ...)``, without a batch axis; only its shape is used.
        framing: Original size and crop for SDXL; other models ignore it.

    Raises:
        ValueError: The caption has several entries, as combined or scheduled prompts do.
    """
    if len(conditioning) != 1:
        raise ValueError(
            "a training caption must be one prompt, got one of "
            f"{len(conditioning)} combined parts; use a plain text prompt"
        )
    text, options = conditioning[0]
    options = {**options, "guidance": 1.0, **(framing.as_options() if framing else {})}
    shape = (1, *latent.shape)
    with torch.inference_mode(False), torch.no_grad():
        entry = [[_owned(text), {name: _owned(value) for name, value in options.items()}]]
        converted = comfy.sampler_helpers.convert_cond(entry)
        encoded = comfy.samplers.process_conds(
            model.model,
            torch.zeros(shape),
            {"positive": converted},
            torch.device("cpu"),
            latent_shapes=[shape],
        )
    return TrainingCond(encoded["positive"][0]["model_conds"])


def _owned(value: Any) -> Any:
    """Return a copy that autograd may save, as all inputs of a node are inference tensors."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def _shape(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, list):
        return tuple(_shape(part) for part in value)
    return repr(value)
