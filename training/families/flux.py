"""Flux.1."""

from .defaults import HALF, PairDefaults, plain_transformer
from .family import Blocks, ComfyClasses, Family, RegionLayers, TargetLayers
from .networks import DISTILLED_SAMPLINGS, MASKED_TEXT_KEYS

FLUX_REGIONS = RegionLayers(
    without_tokens=r"(^|\.)(time_in|vector_in|guidance_in|modulation|img_mod|txt_mod"
    r"|double_stream_modulation_\w+|single_stream_modulation|adaLN_modulation)(\.|$)",
    text=r"^txt_in|\.txt_attn\.|\.txt_mlp\.",
    text_and_image=r"^single_blocks\.\d+\.linear[12]$",
    fused_image=r"\.img_attn\.qkv$|^single_blocks\.\d+\.linear1$",
)

FLUX = Family(
    name="Flux",
    architecture="flux-1-dev/lora",
    base_version="flux1",
    kohya_keys=False,
    classes=ComfyClasses(configs=("Flux", "FluxSchnell"), model="Flux", network="flux.model.Flux"),
    attention_layout="joint",
    layers=TargetLayers(
        attention=r"^double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)$"
        r"|^single_blocks\.\d+\.linear2$",
        feed_forward=r"^double_blocks\.\d+\.(img|txt)_mlp\.\d+$|^single_blocks\.\d+\.linear1$",
        blocks=r"^(double|single)_blocks\.",
        fused_attention=r"^single_blocks\.\d+\.linear1$",
    ),
    blocks=Blocks(lists=("double_blocks", "single_blocks"), in_place_residuals=True),
    regions=FLUX_REGIONS,
    fusion_stages=("text", "spatial"),
    text_encoders=("clip_l", "t5xxl"),
    text_keys=MASKED_TEXT_KEYS,
    resolution=512,
    multiple=16,
    samplings=DISTILLED_SAMPLINGS,
    pair=PairDefaults(1500, 32, 1e-5, 1e-2, 42, "the authors' Flux port's"),
    plain=plain_transformer("logit-normal"),
    half=HALF,
)
