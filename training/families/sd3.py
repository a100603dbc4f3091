"""Stable Diffusion 3 and 3.5."""

from .defaults import HALF, PAIR_TRANSFORMER, plain_transformer
from .family import Blocks, ComfyClasses, Family, RegionLayers, TargetLayers
from .networks import FLOW_SAMPLINGS, MASKED_TEXT_KEYS

SD3 = Family(
    name="SD3",
    architecture="stable-diffusion-3/lora",
    base_version="sd3",
    kohya_keys=False,
    classes=ComfyClasses(
        configs=("SD3",),
        model="SD3",
        network="modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
    ),
    attention_layout="joint",
    layers=TargetLayers(
        attention=r"^joint_blocks\.\d+\.(x|context)_block\.attn2?\.(qkv|proj)$",
        feed_forward=r"^joint_blocks\.\d+\.(x|context)_block\.mlp\.fc[12]$",
        blocks=r"^joint_blocks\.",
    ),
    blocks=Blocks(lists=("joint_blocks",)),
    regions=RegionLayers(
        without_tokens=r"(^|\.)(adaLN_modulation|t_embedder|y_embedder)(\.|$)",
        text=r"^context_embedder|\.context_block\.",
        fused_image=r"\.x_block\.attn2?\.qkv$",
    ),
    fusion_stages=("text", "spatial"),
    text_encoders=("clip_l", "clip_g", "t5xxl"),  # a checkpoint may lack some of them
    text_keys=MASKED_TEXT_KEYS,
    resolution=512,
    multiple=16,
    samplings=FLOW_SAMPLINGS,
    pair=PAIR_TRANSFORMER,
    plain=plain_transformer("logit-normal"),
    half=HALF,
)
