"""Stable Diffusion 2.x, which differs from 1.x in its text encoder and sizes."""

from dataclasses import replace

from .defaults import plain_unet
from .family import ComfyClasses
from .networks import UNET
from .sd15 import SD15

SD2 = replace(
    SD15,
    name="SD2",
    architecture="stable-diffusion-v2-768-v/lora",
    base_version="sd_v2_v",
    classes=ComfyClasses(configs=("SD20",), model="BaseModel", network=UNET),
    text_encoders=("clip_h",),
    plain=plain_unet(768),
)
