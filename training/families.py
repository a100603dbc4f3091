"""Defaults of every supported model family, with their source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairDefaults:
    """Pair Customization's settings for one family.

    Args:
        steps: Training steps.
        rank: Of the content and of the style adapter.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        basis_seed: Of the orthonormal bases.
        source: Whose values these are, for the node's text.
    """

    steps: int
    rank: int
    learning_rate: float
    weight_decay: float
    basis_seed: int
    source: str


@dataclass(frozen=True)
class Family:
    """A model family as the pack knows it.

    Args:
        name: Shown to users and stored in files.
        architecture: ``modelspec.architecture`` of its LoRAs.
        base_version: ``ss_base_model_version`` of its LoRAs.
        resolution: Shorter side of training images in pixels.
        multiple: Image sides must be a multiple of this many pixels.
        kohya_keys: Whether its files use kohya names; otherwise ``diffusion_model.`` names.
        pair: Defaults of Pair Customization.
        distilled: Whether the model may be guidance-distilled, which deserves a warning.
    """

    name: str
    architecture: str
    base_version: str
    resolution: int
    multiple: int
    kohya_keys: bool
    pair: PairDefaults
    distilled: bool = False


_SDXL_PAPER = PairDefaults(750, 64, 1e-5, 1e-4, 123846, "the paper's, for SDXL")
_FLUX_PORT = PairDefaults(1500, 32, 1e-5, 1e-2, 42, "the authors' Flux port's")
_UNET_OURS = PairDefaults(750, 64, 1e-5, 1e-4, 123846, "ours, after the paper's for SDXL")
_DIT_OURS = PairDefaults(1500, 32, 1e-5, 1e-2, 42, "ours, after the authors' Flux port")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("SD1.5", "stable-diffusion-v1/lora", "sd_v1", 512, 8, True, _UNET_OURS),
        Family("SD2", "stable-diffusion-v2-768-v/lora", "sd_v2_v", 512, 8, True, _UNET_OURS),
        Family(
            "SDXL", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", 512, 8, True, _SDXL_PAPER
        ),
        Family("SD3", "stable-diffusion-3/lora", "sd3", 512, 16, False, _DIT_OURS),
        Family("Flux", "flux-1-dev/lora", "flux1", 512, 16, False, _FLUX_PORT, distilled=True),
        Family("Flux.2", "flux-2-dev/lora", "flux2", 512, 16, False, _DIT_OURS, distilled=True),
        Family("Wan 2.1", "wan-2.1-t2v/lora", "wan2.1", 480, 16, False, _DIT_OURS),
        Family("Qwen-Image", "qwen-image/lora", "qwen_image", 512, 16, False, _DIT_OURS),
        Family("Z-Image", "z-image/lora", "z_image", 512, 16, False, _DIT_OURS),
    )
}
"""Every supported family by name."""
