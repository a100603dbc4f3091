"""The grammar of LoRA file keys: strings only, and the only place that spells them."""

from __future__ import annotations

from typing import NamedTuple

NATIVE_PREFIX = "diffusion_model."


class FactorKeys(NamedTuple):
    """The three keys of one layer in a file."""

    down: str
    up: str
    alpha: str


def factor_keys(layer: str) -> FactorKeys:
    """Return the keys of a layer's factors as this pack writes them.

    Args:
        layer: ``lora_unet_…`` or ``lora_te…`` (kohya names), or ``diffusion_model.…`` (the
            model's own names, with ``lora_A``/``lora_B``).
    """
    if layer.startswith(NATIVE_PREFIX):
        return FactorKeys(
            f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", f"{layer}.alpha"
        )
    return FactorKeys(
        f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha"
    )
