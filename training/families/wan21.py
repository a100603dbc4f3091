"""Wan 2.1 text-to-video, trained on single pictures."""

from .defaults import HALF, PAIR_TRANSFORMER, plain_transformer
from .family import Blocks, ComfyClasses, Family, RegionLayers, TargetLayers
from .networks import FLOW_SAMPLINGS, TEXT_KEYS

WAN21 = Family(
    name="Wan 2.1",
    architecture="wan-2.1-t2v/lora",
    base_version="wan2.1",
    kohya_keys=False,
    classes=ComfyClasses(configs=("WAN21_T2V",), model="WAN21", network="wan.model.WanModel"),
    attention_layout="cross",
    layers=TargetLayers(
        attention=r"^blocks\.\d+\.(self|cross)_attn\.[qkvo]$",
        feed_forward=r"^blocks\.\d+\.ffn\.[02]$",
        blocks=r"^blocks\.",
        text_keys_values=r"\.cross_attn\.[kv]$",
        shared_inputs=(
            (r"(\.self_attn\.)[qkv]$", r"\1q"),
            (r"(\.cross_attn\.)[kv]$", r"\1k"),
        ),
    ),
    blocks=Blocks(lists=("blocks",)),
    regions=RegionLayers(
        without_tokens=r"(^|\.)(modulation|time_embedding|time_projection)(\.|$)",
        text=r"^text_embedding\.|\.cross_attn\.[kv]$",
        image_keys_values=r"\.self_attn\.[kv]$",
        cross_attention=r"^blocks\.\d+\.cross_attn$",
        cross_attention_class="wan.model.WanT2VCrossAttention",
        variant="text-to-video",
    ),
    fusion_stages=("text", "spatial"),
    text_encoders=("umt5xxl",),
    text_keys=TEXT_KEYS,
    resolution=480,
    multiple=16,
    samplings=FLOW_SAMPLINGS,
    pair=PAIR_TRANSFORMER,
    plain=plain_transformer("uniform", 640),
    half=HALF,
)
