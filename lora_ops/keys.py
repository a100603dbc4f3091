"""Parse and write the keys of LoRA files; no other module spells these keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

NATIVE_PREFIX = "diffusion_model."
DOWN, UP, MID, ALPHA = "down", "up", "mid", "alpha"

# Suffixes with which the known trainers end the keys of a low-rank layer.
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

# Parts of the other adapter types that ComfyUI applies; this pack only passes them on.
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

# Prefixes of UNet layers. The trainers of diffusers 0.22 write the first one, and so does the
# released Break-for-Make code.
_UNET_ROOTS = ("unet.unet.", "unet.", "base_model.model.")

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
    """A parsed key: the layer that it belongs to, and the tensor of the layer that it names."""

    layer: str
    part: str


def factor_keys(layer: str) -> FactorKeys:
    """Return the keys under which this pack writes a layer's factors.

    Args:
        layer: Layer name: ``lora_unet_…`` or ``lora_te…`` (kohya names), or ``diffusion_model.…``
            (the model's own names, with ``lora_A``/``lora_B``).
    """
    if layer.startswith(NATIVE_PREFIX):
        return FactorKeys(f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", f"{layer}.alpha")
    return FactorKeys(f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha")


def part_key(layer: str, part: str, *, has_mid: bool = False) -> str:
    """Return the key of one part of a layer in this pack's spelling.

    Args:
        layer: Layer name, in one of the two spellings of ``factor_keys``.
        part: ``DOWN``, ``UP``, ``MID``, ``ALPHA`` or a part of another adapter type.
        has_mid: Whether the layer has a middle factor. ComfyUI finds middle factors only next to
            keys in kohya's spelling.
    """
    if part == MID or (has_mid and part in (DOWN, UP)):
        return f"{layer}.lora_{part}.weight"
    own = factor_keys(layer)
    return {DOWN: own.down, UP: own.up}.get(part, f"{layer}.{part}")


def parse_key(key: str) -> LayerPart | None:
    """Return the layer and part that a key names; None if no known trainer writes such keys."""
    for suffix, part in _SUFFIXES.items():
        if key.endswith(suffix):
            return LayerPart(key.removesuffix(suffix), part) if key != suffix else None
    for part in _OTHER_PARTS:
        if key.endswith(f".{part}"):
            layer = key.removesuffix(f".{part}")
            return LayerPart(layer, part) if layer else None
    return None


def kohya_layer(layer: str) -> str:
    """Return the kohya name of a UNet layer given by its diffusers path; other names unchanged.

    ComfyUI maps kohya names and those of old attention processors, but not the names that PEFT and
    current diffusers write (``unet.….attn2.to_k``). Only the name changes.
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
    """Return each layer's keys by part; layers are in the order of their first key.

    Raises:
        ValueError: No known trainer writes such a key, or two keys name the same part of a layer.
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
