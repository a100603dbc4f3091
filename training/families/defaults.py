"""Training defaults of the model families: their fields, and the values that families share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairDefaults:
    """Pair Customization's settings for one family.

    Args:
        steps: Training steps.
        rank: LoRA rank of the content adapter and of the style adapter.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        basis_seed: Seed of the orthonormal bases.
        source: Where these values come from, as the node's text says it.
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
        rank: LoRA rank.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        timesteps: How noise levels are drawn from the model's own table.
        resolution: Side of the square whose area large pictures are brought to, in pixels.
        source: Where these values come from, as the node's text says it.
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
        make_steps: Training steps of the joint fine-tune.
        rank: LoRA rank.
        learning_rate: Learning rate of the owned part, and of both parts in the fine-tune.
        weight_decay: Weight decay of the trained parts.
        partner_rate: What multiplies the partner's learning rate.
        source: Where these values come from, as the node's text says it.
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
        rank: LoRA rank.
        learning_rate: Learning rate of the adapter in the denoiser.
        text_rate: Learning rate of the adapter in the text encoder.
        word_rate: Learning rate of the words' embeddings.
        weight_decay: Weight decay of all three.
        source: Where these values come from, as the node's text says it.
    """

    steps: int
    rank: int
    learning_rate: float
    text_rate: float
    word_rate: float
    weight_decay: float
    source: str


MethodDefaults = PairDefaults | PlainDefaults | HalfDefaults | ConceptDefaults

# The paper has one set for all, a thousand steps for persons and scenes.
CONCEPT = ConceptDefaults(1000, 4, 1e-4, 1e-5, 1e-3, 1e-2, "the paper's, for SD1.5")

PAIR_UNET = PairDefaults(750, 64, 1e-5, 1e-4, 123846, "ours, after the paper's for SDXL")
PAIR_TRANSFORMER = PairDefaults(1500, 32, 1e-5, 1e-2, 42, "ours, after the authors' Flux port")

HALF = HalfDefaults(1000, 1000, 64, 1e-4, 1e-2, 0.1, "ours, after the released scripts for SDXL")

_UNET_SOURCE = "ours; the rate is that of diffusers' DreamBooth LoRA for SDXL"
_TRANSFORMER_SOURCE = "ours; the rate is that of diffusers' DreamBooth LoRA for SD3 and Flux"


def plain_unet(resolution: int) -> PlainDefaults:
    """Return the ordinary LoRA's settings of a UNet, which is trained on its whole table."""
    return PlainDefaults(1000, 16, 1e-4, 1e-2, "uniform", resolution, _UNET_SOURCE)


def plain_transformer(timesteps: str, resolution: int = 1024) -> PlainDefaults:
    """Return the ordinary LoRA's settings of a flow transformer.

    A flow model's own table is shifted already: by 3 for SD3 and Z-Image, 8 for Wan 2.1, e^1.15
    for Flux.1 and Qwen-Image, e^2.02 for Flux.2. Uniform draws from it are "shifted" elsewhere,
    logit-normal ones are Esser et al.'s, arXiv:2403.03206, for SD3 at 1024 pixels.
    """
    return PlainDefaults(1500, 16, 1e-4, 1e-2, timesteps, resolution, _TRANSFORMER_SOURCE)
