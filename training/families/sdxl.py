"""SDXL and its smaller distillations."""

from dataclasses import replace

from .defaults import HalfDefaults, PairDefaults, plain_unet
from .family import ComfyClasses
from .networks import UNET
from .sd15 import SD15

SDXL = replace(
    SD15,
    name="SDXL",
    architecture="stable-diffusion-xl-v1-base/lora",
    base_version="sdxl_base_v1-0",
    classes=ComfyClasses(
        configs=("SDXL", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"),
        model="SDXL",
        network=UNET,
    ),
    text_encoders=("clip_l", "clip_g"),
    pair=PairDefaults(750, 64, 1e-5, 1e-4, 123846, "the paper's, for SDXL"),
    plain=plain_unet(1024),
    # The released content script ignores its steps and takes 9,000; the style script has 1,000.
    half=HalfDefaults(1000, 1000, 64, 1e-4, 1e-2, 0.1, "the released scripts', for SDXL"),
)
