"""The grammar of LoRA file keys: strings only, and the only place that spells them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

NATIVE_PREFIX = "diffusion_model."
DOWN, UP, MID, ALPHA = "down", "up", "mid", "alpha"

_SUFFIXES: dict[str, str] = {
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_mid.weight": MID,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_A": DOWN,
    ".lora_B": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".alpha": ALPHA,
}
"""How the trainers end the keys of a low-rank layer."""

_OTHER_PARTS = (
    "dora_scale",
    "reshape_weight",
    "diff",
    "diff_b",
    "set_weight",
    "w_norm",
    "b_norm",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "oft_blocks",
    "rescale",
    "a1.weight",
    "a2.weight",
    "b1.weight",
    "b2.weight",
)
"""Parts of the other adapters that ComfyUI applies; this pack only passes them on."""

_UNET_ROOTS = ("unet.unet.", "unet.", "base_model.model.")
"""The first is what diffusers' trainers of 0.22 write; the released Break-for-Make code is one."""

_UNET_BLOCKS = (
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
    "conv_in",
    "conv_out",
    "time_embedding.",
    "add_embedding.",
)
_TEXT_PREFIXES = ("lora_te", "text_encoder.", "text_encoder_2.", "text_encoders.")


class FactorKeys(NamedTuple):
    """The three keys of one layer in a file."""

    down: str
    up: str
    alpha: str


class LayerPart(NamedTuple):
    """Which layer a key belongs to, and which of its tensors it names."""

    layer: str
    part: str


def factor_keys(layer: str) -> FactorKeys:
    """Return the keys of a layer's factors as this pack writes them.

    Args:
        layer: ``lora_unet_…`` or ``lora_te…`` (kohya names), or ``diffusion_model.…`` (the
            model's own names, with ``lora_A``/``lora_B``).
    """
    if layer.startswith(NATIVE_PREFIX):
        return FactorKeys(f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", f"{layer}.alpha")
    return FactorKeys(f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha")


def part_key(layer: str, part: str, *, has_mid: bool = False) -> str:
    """Return the key of one part of a layer in this pack's spelling.

    Args:
        layer: As ``factor_keys`` takes it.
        part: ``DOWN``, ``UP``, ``MID``, ``ALPHA`` or another adapter's part.
        has_mid: Whether the layer has a middle factor, which ComfyUI looks for beside kohya's
            spelling alone.
    """
    if part == MID or (has_mid and part in (DOWN, UP)):
        return f"{layer}.lora_{part}.weight"
    own = factor_keys(layer)
    return {DOWN: own.down, UP: own.up}.get(part, f"{layer}.{part}")


def parse_key(key: str) -> LayerPart | None:
    """Return the layer and the part that a key of any known trainer names; None if it is no such key."""
    for suffix, part in _SUFFIXES.items():
        if key.endswith(suffix):
            return LayerPart(key.removesuffix(suffix), part) if key != suffix else None
    for part in _OTHER_PARTS:
        if key.endswith(f".{part}"):
            layer = key.removesuffix(f".{part}")
            return LayerPart(layer, part) if layer else None
    return None


def kohya_layer(layer: str) -> str:
    """Return the kohya name of a UNet layer under its diffusers path; any other name unchanged.

    ComfyUI maps kohya's names and those of old attention processors, not those that PEFT and
    today's diffusers write (``unet.….attn2.to_k``). The mapping is a pure renaming.
    """
    path = layer
    for root in _UNET_ROOTS:
        path = path.removeprefix(root)
    if not path.startswith(_UNET_BLOCKS):
        return layer
    path = path.replace(".processor.", ".")
    if path.endswith(".to_out"):
        path += ".0"
    return "lora_unet_" + path.replace(".", "_")


def changes_text_encoder(layer: str) -> bool:
    """Return whether a layer belongs to a text encoder."""
    return layer.startswith(_TEXT_PREFIXES)


def parts_by_layer(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return each layer's keys by part, layers in the order of their first key.

    Raises:
        ValueError: A key is of no known trainer, or two keys name the same part of a layer.
    """
    layers: dict[str, dict[str, str]] = {}
    for key in keys:
        parsed = parse_key(key)
        if parsed is None:
            raise ValueError(f"every tensor must belong to a LoRA layer, got {key[:80]!r}")
        parts = layers.setdefault(kohya_layer(parsed.layer), {})
        if parsed.part in parts:
            raise ValueError(
                "a layer must hold each tensor once, "
                f"got {parts[parsed.part][:80]!r} and {key[:80]!r}"
            )
        parts[parsed.part] = key
    return layers
