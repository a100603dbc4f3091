"""Qwen-Image."""

from .defaults import HALF, PAIR_TRANSFORMER, plain_transformer
from .family import Blocks, ComfyClasses, Family, TargetLayers
from .networks import FLOW_SAMPLINGS, MASKED_TEXT_KEYS

QWEN_IMAGE = Family(
    name="Qwen-Image",
    architecture="qwen-image/lora",
    base_version="qwen_image",
    kohya_keys=False,
    classes=ComfyClasses(
        configs=("QwenImage",),
        model="QwenImage",
        network="qwen_image.model.QwenImageTransformer2DModel",
    ),
    attention_layout="joint",
    layers=TargetLayers(
        attention=r"^transformer_blocks\.\d+\.attn\."
        r"(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)$",
        feed_forward=r"^transformer_blocks\.\d+\.(img|txt)_mlp\.net\.(0\.proj|2)$",
        blocks=r"^transformer_blocks\.",
        shared_inputs=(
            (r"(\.attn\.)to_[qkv]$", r"\1to_q"),
            (r"(\.attn\.)add_[qkv]_proj$", r"\1add_q_proj"),
        ),
    ),
    blocks=Blocks(lists=("transformer_blocks",)),
    regions=None,
    fusion_stages=("text", "spatial"),
    text_encoders=(),
    text_keys=MASKED_TEXT_KEYS,
    resolution=512,
    multiple=16,
    samplings=FLOW_SAMPLINGS,
    pair=PAIR_TRANSFORMER,
    plain=plain_transformer("logit-normal"),
    half=HALF,
    packs_latents=True,
)
