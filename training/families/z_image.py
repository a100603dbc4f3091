"""Z-Image."""

from .defaults import HALF, PAIR_TRANSFORMER, plain_transformer
from .family import Blocks, ComfyClasses, Family, TargetLayers
from .networks import FLOW_SAMPLINGS, MASKED_TEXT_KEYS

Z_IMAGE = Family(
    name="Z-Image",
    architecture="z-image/lora",
    base_version="z_image",
    kohya_keys=False,
    classes=ComfyClasses(configs=("ZImage",), model="Lumina2", network="lumina.model.NextDiT"),
    attention_layout="joint",
    layers=TargetLayers(
        attention=r"^layers\.\d+\.attention\.(qkv|out)$",
        feed_forward=r"^layers\.\d+\.feed_forward\.w[123]$",
        blocks=r"^layers\.",
        shared_inputs=((r"(\.feed_forward\.)w[13]$", r"\1w1"),),
    ),
    blocks=Blocks(lists=("noise_refiner", "context_refiner", "layers")),
    regions=None,
    fusion_stages=("text", "spatial"),
    text_encoders=(),
    text_keys=MASKED_TEXT_KEYS,
    resolution=512,
    multiple=16,
    samplings=FLOW_SAMPLINGS,
    pair=PAIR_TRANSFORMER,
    plain=plain_transformer("uniform"),
    half=HALF,
)
