"""The properties of a model family that the pack needs, as plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .defaults import CONCEPT, ConceptDefaults, HalfDefaults, PairDefaults, PlainDefaults

AttentionLayout = Literal["unet", "joint", "cross"]
FusionStage = Literal["text", "cross", "spatial"]


@dataclass(frozen=True)
class ComfyClasses:
    """The classes by which ComfyUI's models are recognised, as names.

    Args:
        configs: Classes in ``comfy.supported_models``. A model of one of them belongs to the
            family; a class derived from it does not.
        model: Class in ``comfy.model_base``.
        network: Class of the network, with its module below ``comfy.ldm``.
    """

    configs: tuple[str, ...]
    model: str
    network: str


@dataclass(frozen=True)
class TargetLayers:
    """Patterns (regular expressions) of module paths in the network; an empty one matches none.

    Args:
        attention: q, k, v and output projections of attention.
        feed_forward: Linear layers of the feed-forward parts.
        blocks: All trainable layers inside the blocks.
        text_keys_values: Layers that make keys and values of the text alone, by their path or by
            their name in a LoRA file.
        fused_attention: Layers that hold q, k and v in their first rows, followed by other things.
        fused_suffix: Suffix by which ComfyUI's loader reads the q, k and v rows of such a layer.
        shared_inputs: Pairs of a pattern of layers that read the same tensor and the replacement
            that turns the path of any of them into that of the first.
    """

    attention: str
    feed_forward: str
    blocks: str
    text_keys_values: str = ""
    fused_attention: str = ""
    fused_suffix: str = "_qkv"
    shared_inputs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network that gradient checkpointing recomputes one at a time.

    Args:
        lists: Attributes of the network that hold the blocks.
        classes: Classes of blocks that are nested deeper, with their modules below ``comfy.ldm``.
        in_place_residuals: Whether the blocks add residuals to their own inputs in place.
    """

    lists: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    in_place_residuals: bool = False


@dataclass(frozen=True)
class RegionLayers:
    """The layers of a network as regions treat them; patterns as in ``TargetLayers``.

    Layers that no pattern matches see image tokens.

    Args:
        without_tokens: Layers that see no tokens, such as those of the timestep.
        text: Layers that see text tokens.
        text_and_image: Layers that see text and image tokens in one sequence.
        image_keys_values: Layers that make keys and values of image tokens.
        fused_image: Layers that make q, k and v of image tokens, in this order.
        text_positions: Coordinates of a text token's position that contain its index in the prompt.
        cross_attention: Attention modules that read the text, in networks of the ``cross`` layout.
        cross_attention_class: Required class of these modules, with its module below ``comfy.ldm``.
        variant: Name of the variant that regions support, if the family has several.
    """

    without_tokens: str
    text: str
    text_and_image: str = ""
    image_keys_values: str = ""
    fused_image: str = ""
    text_positions: tuple[int, ...] = ()
    cross_attention: str = ""
    cross_attention_class: str = ""
    variant: str = ""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings, named as in ComfyUI's KSampler."""

    steps: int = 20
    cfg: float = 5.0
    sampler_name: str = "euler"
    scheduler: str = "normal"


@dataclass(frozen=True)
class Samplings:
    """The sampling settings of a family for each purpose.

    Args:
        auxiliary: Pictures of a class that Break-for-Make draws with the base.
        fusion: Pictures that gradient fusion draws; the number of steps is the node's.
        preview: Preview pictures during training, always with Euler.
        distilled_guidance: Guidance that a guidance-distilled model is given in place of CFG;
            None where no model of the family is distilled.
    """

    auxiliary: Sampling
    fusion: Sampling
    preview: Sampling = Sampling()
    distilled_guidance: float | None = None


@dataclass(frozen=True)
class Family:
    """A model family.

    Args:
        name: Name shown to users and stored in files.
        architecture: ``modelspec.architecture`` of its LoRA files.
        base_version: ``ss_base_model_version`` of its LoRA files.
        kohya_keys: Whether its LoRA files use kohya's names, or else ``diffusion_model.`` names.
            It affects only names in files.
        classes: ComfyUI's classes of its models.
        attention_layout: Attention between text and image: ``unet`` for cross-attention in a UNet
            with keys from the raw context, ``cross`` for cross-attention in a transformer that
            embeds the text once, ``joint`` for attention over text and image tokens together.
        layers: Layers for training and fusion.
        blocks: Blocks that checkpointing recomputes.
        regions: Layers for regions; None where regions are not supported.
        fusion_stages: Stages of gradient fusion, in order.
        text_encoders: ComfyUI's names of its text encoders, where concepts can be trained.
        text_keys: Keys of a CONDITIONING entry that its text encoders write.
        resolution: Shorter side of a pair's pictures in pixels.
        multiple: Image sides must be a multiple of this many pixels.
        packs_latents: Whether patches of the latent are packed into the network's input channels.
        samplings: Sampling settings for each purpose.
        pair: Defaults of Pair Customization.
        plain: Defaults of the ordinary LoRA.
        half: Defaults of Break-for-Make.
        concept: Defaults of ED-LoRA.
    """

    name: str
    architecture: str
    base_version: str
    kohya_keys: bool
    classes: ComfyClasses
    attention_layout: AttentionLayout
    layers: TargetLayers
    blocks: Blocks
    regions: RegionLayers | None
    fusion_stages: tuple[FusionStage, ...]
    text_encoders: tuple[str, ...]
    text_keys: frozenset[str]
    resolution: int
    multiple: int
    samplings: Samplings
    pair: PairDefaults
    plain: PlainDefaults
    half: HalfDefaults
    concept: ConceptDefaults = CONCEPT
    packs_latents: bool = False

    @property
    def distilled(self) -> bool:
        """Return whether models of the family may be guidance-distilled."""
        return self.samplings.distilled_guidance is not None


def matches(pattern: str, path: str) -> bool:
    """Return whether a pattern matches a path; the empty pattern matches none."""
    return bool(pattern) and re.search(pattern, path) is not None
