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
class PlainDefaults:
    """The ordinary LoRA's settings for one family; alpha is the rank.

    Args:
        steps: Training steps.
        rank: Of the adapter.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        timesteps: How noise levels are drawn from the model's own table.
        resolution: Side of the square whose area large pictures are brought to, in pixels.
        source: Whose values these are, for the node's text.
    """

    steps: int
    rank: int
    learning_rate: float
    weight_decay: float
    timesteps: str
    resolution: int
    source: str


@dataclass(frozen=True)
class HalfDefaults:
    """Break-for-Make's settings for one family; alpha is the rank.

    Args:
        steps: Training steps of a half.
        make_steps: Of the joint fine-tune.
        rank: Of the adapter.
        learning_rate: Of the owned part, and of both in the fine-tune.
        weight_decay: Of the learnt parts.
        partner_rate: What multiplies the partner's learning rate.
        source: Whose values these are, for the node's text.
    """

    steps: int
    make_steps: int
    rank: int
    learning_rate: float
    weight_decay: float
    partner_rate: float
    source: str


@dataclass(frozen=True)
class ConceptDefaults:
    """ED-LoRA's settings for one family; alpha is the rank.

    Args:
        steps: Training steps.
        rank: Of the adapter.
        learning_rate: Of the adapter in the denoiser.
        text_rate: Learning rate of the adapter in the text encoder.
        word_rate: Learning rate of the words' embeddings.
        weight_decay: Of all three.
        source: Whose values these are, for the node's text.
    """

    steps: int
    rank: int
    learning_rate: float
    text_rate: float
    word_rate: float
    weight_decay: float
    source: str


MethodDefaults = PairDefaults | PlainDefaults | HalfDefaults | ConceptDefaults

CONCEPT = ConceptDefaults(1000, 4, 1e-4, 1e-5, 1e-3, 1e-2, "the paper's, for SD1.5")
"""Of every family: the paper has one set, a thousand steps for persons and scenes."""


@dataclass(frozen=True)
class Family:
    """A model family as the pack knows it.

    Args:
        name: Shown to users and stored in files.
        architecture: ``modelspec.architecture`` of its LoRAs.
        base_version: ``ss_base_model_version`` of its LoRAs.
        resolution: Shorter side of a pair's pictures in pixels.
        multiple: Image sides must be a multiple of this many pixels.
        kohya_keys: Whether its files use kohya names; otherwise ``diffusion_model.`` names.
        pair: Defaults of Pair Customization.
        plain: Defaults of the ordinary LoRA.
        half: Defaults of Break-for-Make.
        distilled: Whether the model may be guidance-distilled, which deserves a warning.
        concept: Defaults of ED-LoRA.
    """

    name: str
    architecture: str
    base_version: str
    resolution: int
    multiple: int
    kohya_keys: bool
    pair: PairDefaults
    plain: PlainDefaults
    half: HalfDefaults
    distilled: bool = False
    concept: ConceptDefaults = CONCEPT


_SDXL_PAPER = PairDefaults(750, 64, 1e-5, 1e-4, 123846, "the paper's, for SDXL")
_FLUX_PORT = PairDefaults(1500, 32, 1e-5, 1e-2, 42, "the authors' Flux port's")
_UNET_OURS = PairDefaults(750, 64, 1e-5, 1e-4, 123846, "ours, after the paper's for SDXL")
_DIT_OURS = PairDefaults(1500, 32, 1e-5, 1e-2, 42, "ours, after the authors' Flux port")

# The released content script ignores its steps and takes 9,000; the style script's 1,000 is taken.
_SDXL_HALF = HalfDefaults(1000, 1000, 64, 1e-4, 1e-2, 0.1, "the released scripts', for SDXL")
_HALF_OURS = HalfDefaults(
    1000, 1000, 64, 1e-4, 1e-2, 0.1, "ours, after the released scripts for SDXL"
)

_UNET_SOURCE = "ours; the rate is that of diffusers' DreamBooth LoRA for SDXL"
_DIT_SOURCE = "ours; the rate is that of diffusers' DreamBooth LoRA for SD3 and Flux"


def _unet(resolution: int) -> PlainDefaults:
    return PlainDefaults(1000, 16, 1e-4, 1e-2, "uniform", resolution, _UNET_SOURCE)


def _dit(timesteps: str, resolution: int = 1024) -> PlainDefaults:
    # A flow model's own table is shifted already: by 3 for SD3 and Z-Image, 8 for Wan 2.1, e^1.15
    # for Flux.1 and Qwen-Image, e^2.02 for Flux.2. Uniform draws from it are "shifted" elsewhere,
    # logit-normal ones are Esser et al.'s, arXiv:2403.03206, for SD3 at 1024 pixels.
    return PlainDefaults(1500, 16, 1e-4, 1e-2, timesteps, resolution, _DIT_SOURCE)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="SD1.5",
            architecture="stable-diffusion-v1/lora",
            base_version="sd_v1",
            resolution=512,
            multiple=8,
            kohya_keys=True,
            pair=_UNET_OURS,
            plain=_unet(512),
            half=_HALF_OURS,
        ),
        Family(
            name="SD2",
            architecture="stable-diffusion-v2-768-v/lora",
            base_version="sd_v2_v",
            resolution=512,
            multiple=8,
            kohya_keys=True,
            pair=_UNET_OURS,
            plain=_unet(768),
            half=_HALF_OURS,
        ),
        Family(
            name="SDXL",
            architecture="stable-diffusion-xl-v1-base/lora",
            base_version="sdxl_base_v1-0",
            resolution=512,
            multiple=8,
            kohya_keys=True,
            pair=_SDXL_PAPER,
            plain=_unet(1024),
            half=_SDXL_HALF,
        ),
        Family(
            name="SD3",
            architecture="stable-diffusion-3/lora",
            base_version="sd3",
            resolution=512,
            multiple=16,
            kohya_keys=False,
            pair=_DIT_OURS,
            plain=_dit("logit-normal"),
            half=_HALF_OURS,
        ),
        Family(
            name="Flux",
            architecture="flux-1-dev/lora",
            base_version="flux1",
            resolution=512,
            multiple=16,
            kohya_keys=False,
            pair=_FLUX_PORT,
            plain=_dit("logit-normal"),
            half=_HALF_OURS,
            distilled=True,
        ),
        Family(
            name="Flux.2",
            architecture="flux-2-dev/lora",
            base_version="flux2",
            resolution=512,
            multiple=16,
            kohya_keys=False,
            pair=_DIT_OURS,
            plain=_dit("uniform"),
            half=_HALF_OURS,
            distilled=True,
        ),
        Family(
            name="Wan 2.1",
            architecture="wan-2.1-t2v/lora",
            base_version="wan2.1",
            resolution=480,
            multiple=16,
            kohya_keys=False,
            pair=_DIT_OURS,
            plain=_dit("uniform", 640),
            half=_HALF_OURS,
        ),
        Family(
            name="Qwen-Image",
            architecture="qwen-image/lora",
            base_version="qwen_image",
            resolution=512,
            multiple=16,
            kohya_keys=False,
            pair=_DIT_OURS,
            plain=_dit("logit-normal"),
            half=_HALF_OURS,
        ),
        Family(
            name="Z-Image",
            architecture="z-image/lora",
            base_version="z_image",
            resolution=512,
            multiple=16,
            kohya_keys=False,
            pair=_DIT_OURS,
            plain=_dit("uniform"),
            half=_HALF_OURS,
        ),
    )
}
"""Every supported family by name."""
