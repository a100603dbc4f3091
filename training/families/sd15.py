"""Stable Diffusion 1.x."""

from .defaults import HALF, PAIR_UNET, plain_unet
from .family import ComfyClasses, Family
from .networks import (
    TEXT_KEYS,
    UNET,
    UNET_BLOCKS,
    UNET_LAYERS,
    UNET_REGIONS,
    UNET_SAMPLINGS,
)

SD15 = Family(
    name="SD1.5",
    architecture="stable-diffusion-v1/lora",
    base_version="sd_v1",
    kohya_keys=True,
    classes=ComfyClasses(configs=("SD15",), model="BaseModel", network=UNET),
    attention_layout="unet",
    layers=UNET_LAYERS,
    blocks=UNET_BLOCKS,
    regions=UNET_REGIONS,
    fusion_stages=("text", "cross", "spatial"),
    text_encoders=("clip_l",),
    text_keys=TEXT_KEYS,
    resolution=512,
    multiple=8,
    samplings=UNET_SAMPLINGS,
    pair=PAIR_UNET,
    plain=plain_unet(512),
    half=HALF,
)
