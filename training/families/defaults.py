"""Training defaults of the model families, and the values that several families share."""

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
        source: Origin of these values, as a phrase for the text of the node.
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
        timesteps: Distribution of the training timesteps in the model's own schedule.
        resolution: Side of the square to whose area large pictures are resized, in pixels.
        source: Origin of these values, as a phrase for the text of the node.
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
        partner_rate: Multiplier of the partner's learning rate.
        source: Origin of these values, as a phrase for the text of the node.
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
        weight_decay: Weight decay of both adapters and of the embeddings.
        source: Origin of these values, as a phrase for the text of the node.
    """

    steps: int
    rank: int
    learning_rate: float
    text_rate: float
    word_rate: float
    weight_decay: float
    source: str


MethodDefaults = PairDefaults | PlainDefaults | HalfDefaults | ConceptDefaults

# The paper has one set of values for all concepts, with 1000 steps for persons and scenes.
CONCEPT = ConceptDefaults(1000, 4, 1e-4, 1e-5, 1e-3, 1e-2, "the paper's, for SD1.5")

PAIR_UNET = PairDefaults(750, 64, 1e-5, 1e-4, 123846, "ours, after the paper's for SDXL")
PAIR_TRANSFORMER = PairDefaults(1500, 32, 1e-5, 1e-2, 42, "ours, after the authors' Flux port")

HALF = HalfDefaults(1000, 1000, 64, 1e-4, 1e-2, 0.1, "ours, after the released scripts for SDXL")

_UNET_SOURCE = "ours; the rate is that of diffusers' DreamBooth LoRA for SDXL"
_TRANSFORMER_SOURCE = "ours; the rate is that of diffusers' DreamBooth LoRA for SD3 and Flux"


def plain_unet(resolution: int) -> PlainDefaults:
    """Return the defaults of an ordinary LoRA on a UNet, with uniform timesteps."""
    return PlainDefaults(1000, 16, 1e-4, 1e-2, "uniform", resolution, _UNET_SOURCE)


def plain_transformer(timesteps: str, resolution: int = 1024) -> PlainDefaults:
    """Return the defaults of an ordinary LoRA on a flow transformer.

    The schedule of a flow model is already shifted: by 3 for SD3 and Z-Image, 8 for Wan 2.1, e^1.15
    for Flux.1 and Qwen-Image, and e^2.02 for Flux.2. Uniform timesteps in it are therefore what
    other trainers call "shifted", and logit-normal ones are those of Esser et al.,
    arXiv:2403.03206, for SD3 at 1024 pixels.
    """
    return PlainDefaults(1500, 16, 1e-4, 1e-2, timesteps, resolution, _TRANSFORMER_SOURCE)
