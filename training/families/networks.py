"""Properties of networks that several model families share."""

from __future__ import annotations

from .family import Blocks, RegionLayers, Sampling, Samplings, TargetLayers

UNET = "modules.diffusionmodules.openaimodel.UNetModel"
UNET_LAYERS = TargetLayers(
    attention=r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$",
    feed_forward=r"\.ff\.net\.(0\.proj|2)$",
    blocks=r"\.(transformer_blocks\.\d+\..+|proj_in|proj_out)$",
    text_keys_values=r"[._]attn2[._]to_[kv]$",
    shared_inputs=((r"(\.attn1\.)to_[qkv]$", r"\1to_q"), (r"(\.attn2\.)to_[kv]$", r"\1to_k")),
)
# Blocks of this size keep both the activations inside one block and those between blocks small;
# with whole levels of the UNet neither would be small.
UNET_BLOCKS = Blocks(
    classes=(
        "modules.diffusionmodules.openaimodel.ResBlock",
        "modules.attention.BasicTransformerBlock",
    )
)
UNET_REGIONS = RegionLayers(
    without_tokens=r"(^|\.)(time_embed|label_emb|emb_layers)(\.|$)",
    text=r"\.attn2\.to_[kv]$",
    image_keys_values=r"\.attn1\.to_[kv]$",
)
UNET_SAMPLINGS = Samplings(
    auxiliary=Sampling(cfg=7.0),
    fusion=Sampling(cfg=1.0, sampler_name="dpmpp_2m", scheduler="normal"),  # the paper's
)

# A flow is nearly straight, so that Euler is enough.
FLOW_FUSION = Sampling(cfg=1.0, sampler_name="euler", scheduler="simple")
FLOW_SAMPLINGS = Samplings(auxiliary=Sampling(cfg=5.0), fusion=FLOW_FUSION)
DISTILLED_SAMPLINGS = Samplings(
    auxiliary=Sampling(cfg=1.0), fusion=FLOW_FUSION, distilled_guidance=3.5
)

TEXT_KEYS = frozenset({"cross_attn", "pooled_output"})
MASKED_TEXT_KEYS = TEXT_KEYS | {"attention_mask"}  # encoders that return their padding mask too
