"""Break-for-Make halves: part ownership, compatibility checks, and joining two into one LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from .factors import LowRank
from .parametrizations.partly_learnable import split

Role = Literal["content", "style"]
Part = Literal["down", "up"]

# Largest relative difference at which two frozen halves count as equal. bf16 files round by 0.004,
# and the released trainer's weight decay shrinks its frozen halves by 0.009 over 9,000 steps;
# different bases differ by about 1.4.
BASIS_TOLERANCE = 0.02

# The content owns the learnt columns of ``down``, as in the released code. The paper's figure gives
# the content the up projection instead.
CONTENT_OWNS: Part = "down"


def owned_part(role: Role, content_owns: Part = CONTENT_OWNS) -> Part:
    """Return the part that a role owns: ``content_owns`` for the content, the other for the style.

    Raises:
        ValueError: The role or the part is not one of the two.
    """
    for value, allowed in ((role, ("content", "style")), (content_owns, ("down", "up"))):
        if value not in allowed:
            raise ValueError(f"a half must be one of {' and '.join(allowed)}, got {value!r}")
    if role == "content":
        return content_owns
    return "up" if content_owns == "down" else "down"


def partner_part(role: Role, content_owns: Part = CONTENT_OWNS) -> Part:
    """Return the learnt part that a role doesn't own."""
    return owned_part("style" if role == "content" else "content", content_owns)


def join_layer(
    content: LowRank,
    style: LowRank,
    content_owns: Part = CONTENT_OWNS,
    content_strength: float = 1.0,
    style_strength: float = 1.0,
) -> LowRank:
    """Return one layer that combines the owned parts of a content and a style half.

    The frozen halves come from the half that owns ``up``, as in the released code. Strengths scale
    the owned parts only; at a strength of 1 the parts are copied without any change.

    Args:
        content: Factors of the content half, frozen and learnt parts.
        style: Factors of the style half, frozen and learnt parts.
        content_owns: The part that the content owns.
        content_strength: Multiplier of the content's owned part.
        style_strength: Multiplier of the style's owned part.

    Reference: Xu et al. 2024, arXiv:2403.19456, and its released code.
    """
    content_part = owned_part("content", content_owns)
    halves = {"content": split(content), "style": split(style)}
    strengths = {"content": content_strength, "style": style_strength}
    roles = {content_part: "content", owned_part("style", content_owns): "style"}
    frozen = halves[roles["up"]]
    owned = {part: _scaled(halves[role][part], strengths[role]) for part, role in roles.items()}
    return LowRank(
        torch.cat([frozen["down_frozen"], owned["down"]], dim=1),
        torch.cat([frozen["up_frozen"], owned["up"]], dim=0),
        style.alpha,
    )


def join_halves(
    content: Mapping[str, LowRank],
    style: Mapping[str, LowRank],
    content_owns: Part = CONTENT_OWNS,
    content_strength: float = 1.0,
    style_strength: float = 1.0,
) -> dict[str, LowRank]:
    """Return all layers of a content and a style half as one ordinary low-rank LoRA.

    Args:
        content: Layers of the content half, by name.
        style: Layers of the style half, by name.
        content_owns: The part that the content owns.
        content_strength: Multiplier of the content's owned parts.
        style_strength: Multiplier of the style's owned parts.

    Raises:
        ValueError: The halves don't fit together; the message gives the reason and the layer.
    """
    check_halves(content, style)
    return {
        layer: join_layer(factors, style[layer], content_owns, content_strength, style_strength)
        for layer, factors in content.items()
    }


def check_halves(content: Mapping[str, LowRank], style: Mapping[str, LowRank]) -> None:
    """Raise unless both halves were trained on the same frozen halves of the same layers.

    Raises:
        ValueError: Layers, shapes, ranks, scales or frozen halves differ; the message names which.
    """
    check_layers(content, style)
    for layer, ours in content.items():
        first, second = split(ours), split(style[layer])
        if not all(_same(first[part], second[part]) for part in ("down_frozen", "up_frozen")):
            raise ValueError(
                "content and style half must be trained on one basis, got frozen halves that "
                f"differ at layer {_named(layer)}; train one of them again with the other's basis seed"
            )


def check_layers(content: Mapping[str, LowRank], style: Mapping[str, LowRank]) -> None:
    """Raise unless both halves change the same layers with equal shapes, ranks and scales.

    Raises:
        ValueError: Layers, shapes, ranks or scales differ; the message names which.
    """
    if content.keys() != style.keys():
        odd = sorted(content.keys() ^ style.keys())
        raise ValueError(
            "content and style half must change the same layers, got "
            f"{len(content)} and {len(style)} of which {len(odd)} are in one alone, such as "
            f"{_named(odd[0])}; train both with the same target layers on the same base"
        )
    for layer, ours in content.items():
        other = style[layer]
        for what, values in (
            ("rank", (ours.rank, other.rank)),
            ("shape", (ours.shape, other.shape)),
            ("scale", (ours.scale, other.scale)),
        ):
            if values[0] != values[1]:
                raise ValueError(
                    f"content and style half must have one {what}, got {values[0]} and {values[1]} "
                    f"at layer {_named(layer)}; train both with the same rank on the same base"
                )


def _named(layer: str) -> str:
    """Return a layer's name for an error message, shortened: a file may hold any text."""
    return repr(layer[:80])


def _same(one: Tensor, other: Tensor) -> bool:
    one, other = one.float(), other.to(one.device).float()
    return bool((one - other).norm() <= BASIS_TOLERANCE * torch.maximum(one.norm(), other.norm()))


def _scaled(part: Tensor, strength: float) -> Tensor:
    return part if strength == 1.0 else part * strength
