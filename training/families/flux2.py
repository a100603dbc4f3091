"""Flux.2, whose network is Flux.1's class with shared modulations."""

from dataclasses import replace

from .defaults import PAIR_TRANSFORMER, plain_transformer
from .family import ComfyClasses
from .flux import FLUX, FLUX_REGIONS

FLUX2 = replace(
    FLUX,
    name="Flux.2",
    architecture="flux-2-dev/lora",
    base_version="flux2",
    classes=ComfyClasses(configs=("Flux2",), model="Flux2", network="flux.model.Flux"),
    regions=replace(FLUX_REGIONS, text_positions=(3,)),
    text_encoders=(),
    pair=PAIR_TRANSFORMER,
    plain=plain_transformer("uniform"),
)
