"""Metadata of Break-for-Make halves, and checks whether two halves fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ...lora_ops import LowRank
from ...lora_ops.halves import CONTENT_OWNS, Part, Role, check_halves, check_layers
from ...lora_ops.keys import ALPHA, DOWN, UP, parts_by_layer
from ...lora_ops.parametrizations.partly_learnable import split
from .lora_state import LoraState, metadata_of
from .metadata import family_of

ROLE, BASIS, OWNER, TOKEN = (
    "pastiche.role",
    "pastiche.basis",
    "pastiche.content_owns",
    "pastiche.token",
)
HALF_ROLES: dict[str, Role] = {"content half": "content", "style half": "style"}
IMPORTED = "imported"  # basis of a half from the released code, which records no digest

FROM_FILE = "as the file says"  # choice that reads a half's role or owner from its metadata

# Ends of the layers whose ``up`` the released code freezes at a basis; it freezes all others at
# zero.
_WITH_BASIS = ("to_q", "to_k", "to_v")

# Largest relative difference of a basis' Gram matrix from the identity. Squares double a
# difference, and each half may differ by ``halves.BASIS_TOLERANCE``.
_BASIS_SLACK = 0.05

_LONGEST_NAME = 80  # layer names in messages are cut to this length


@dataclass(frozen=True)
class HalfMetadata:
    """The metadata that every half records.

    Args:
        role: Whether it is a content or a style half.
        basis: Digest of the frozen halves, or ``IMPORTED``.
        content_owns: The part that contents own on this basis.
        token: The trigger word; empty if there is none.
    """

    role: Role
    basis: str
    content_owns: Part = CONTENT_OWNS
    token: str = ""

    def as_metadata(self) -> dict[str, str]:
        """Return the fields as entries of a file's metadata."""
        return {
            ROLE: f"{self.role} half",
            BASIS: self.basis,
            OWNER: self.content_owns,
            TOKEN: self.token,
        }


def half_metadata(half: Mapping[str, Tensor]) -> HalfMetadata:
    """Return the metadata of a half.

    Raises:
        ValueError: The LoRA is not a half.
    """
    metadata = metadata_of(half)
    role = HALF_ROLES.get(metadata.get(ROLE, ""))
    owner = metadata.get(OWNER, "")
    if role is None or not metadata.get(BASIS) or owner not in ("down", "up"):
        raise ValueError(
            "a half must come from Train Half or Load Half, got an ordinary LoRA; "
            "train it as a half, or apply it with Apply LoRA (Pastiche)"
        )
    return HalfMetadata(role, metadata[BASIS], cast(Part, owner), metadata.get(TOKEN, ""))


def half_layers(half: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Return a half's factors by layer name.

    Raises:
        ValueError: A layer does not consist of two factors, or has a scale other than 1.
    """
    layers = {}
    for layer, parts in parts_by_layer(half).items():
        name = repr(layer[:_LONGEST_NAME])
        if not parts.keys() <= {ALPHA, DOWN, UP} or not {DOWN, UP} <= parts.keys():
            raise ValueError(
                "a half must hold the factors down and up of every layer, got "
                f"{' and '.join(sorted(parts))} at {name}; choose another file"
            )
        down, up = half[parts[DOWN]].float(), half[parts[UP]].float()
        alpha = float(half[parts[ALPHA]]) if ALPHA in parts else float(len(down))
        if alpha != len(down):
            raise ValueError(
                f"a half must have an alpha equal to its rank, got {alpha:g} for rank {len(down)} "
                f"at {name}; choose another file"
            )
        if up.shape[1] != len(down):
            raise ValueError(
                f"a half's factors must share the rank axis, got {tuple(down.shape)} and "
                f"{tuple(up.shape)} at {name}; choose another file"
            )
        layers[layer] = LowRank(down, up)
    return layers


def as_half(lora: LoraState, role: str = FROM_FILE, content_owns: str = FROM_FILE) -> LoraState:
    """Return a LoRA as a half, from this pack or from the released code.

    A half of this pack is returned unchanged. A half of the released code has no metadata: it gets
    the chosen role, the basis ``IMPORTED``, and the released owner unless another one is chosen.

    Args:
        lora: Contents of the file.
        role: ``content``, ``style`` or ``FROM_FILE``.
        content_owns: ``down``, ``up`` or ``FROM_FILE``.

    Raises:
        ValueError: The choices contradict the file, the role is missing, or the LoRA is not a half.
    """
    if metadata_of(lora).get(ROLE):
        recorded = half_metadata(lora)
        _require_match("role", role, recorded.role)
        _require_match("content_owns", content_owns, recorded.content_owns)
        half_layers(lora)
        return lora
    if role == FROM_FILE:
        raise ValueError(
            f"role must be content or style for a file that doesn't say it, got {FROM_FILE!r}; "
            "open an ordinary LoRA with Load LoRA (Pastiche), or choose the role of a half"
        )
    _require_frozen(half_layers(lora))
    owner = CONTENT_OWNS if content_owns == FROM_FILE else content_owns
    metadata = HalfMetadata(cast(Role, role), IMPORTED, cast(Part, owner))
    return LoraState(lora, {**lora.metadata, **metadata.as_metadata()})


def check_fit(content: Mapping[str, Tensor], style: Mapping[str, Tensor]) -> Part:
    """Raise unless two halves can be joined; return the part that the content owns.

    Raises:
        ValueError: Roles, bases, architectures, owners, tokens, layers or frozen halves don't fit.
    """
    ours, other = half_metadata(content), half_metadata(style)
    for name, metadata in (("content", ours), ("style", other)):
        if metadata.role != name:
            raise ValueError(
                f"{name} must be a {name} half, got a {metadata.role} half; connect a {name} half "
                "there"
            )
    families = [family_of(metadata_of(half)) for half in (content, style)]
    named = [family.name for family in families if family is not None]
    if len(set(named)) > 1:
        raise ValueError(
            f"content and style half must be made for one base, got {named[0]} and {named[1]}; "
            "train both on the same base"
        )
    if ours.content_owns != other.content_owns:
        raise ValueError(
            "content and style half must agree on what the content owns, got "
            f"{ours.content_owns} and {other.content_owns}; train one of them again"
        )
    check_tokens(ours.token, other.token)
    layers = (half_layers(content), half_layers(style))
    check_layers(*layers)
    if IMPORTED not in (ours.basis, other.basis) and ours.basis != other.basis:
        raise ValueError(
            "content and style half must be trained on one basis, got "
            f"{ours.basis} and {other.basis}; train one of them again with the other's start and "
            "basis_seed"
        )
    check_halves(*layers)
    return ours.content_owns


def check_tokens(content: str, style: str) -> None:
    """Raise if a content and a style have the same trigger word.

    Raises:
        ValueError: Both tokens are the same.
    """
    if content and content.casefold() == style.casefold():
        raise ValueError(
            f"content and style must have words of their own, got {content!r} for both; "
            "train one of them with another token"
        )


def _require_match(name: str, chosen: str, recorded: str) -> None:
    if chosen not in (FROM_FILE, recorded):
        raise ValueError(
            f"{name} must be what the half says of itself, {recorded}, got {chosen}; choose "
            f"{FROM_FILE!r}"
        )


def _require_frozen(layers: Mapping[str, LowRank]) -> None:
    """Raise unless all layers have frozen halves of the released code or of this pack.

    No half freezes ``down`` at zero. In this pack the frozen halves of every layer form a whole
    basis. The released code freezes ``up`` at zero in layers without a basis, which an ordinary
    LoRA never has.
    """
    whole = all(map(_is_whole_basis, layers.values()))
    for layer, factors in layers.items():
        parts, name = split(factors), repr(layer[:_LONGEST_NAME])
        if not parts["down_frozen"].any():
            raise ValueError(
                f"a half must have a frozen half of down, got zeros at {name}; choose another file"
            )
        square = factors.shape[0] == factors.shape[1] and layer.endswith(_WITH_BASIS)
        if not whole and not square and parts["up_frozen"].any():
            raise ValueError(
                "a half must have frozen halves of a basis or of zeros, got an ordinary LoRA's "
                f"numbers at {name}; open it with Load LoRA (Pastiche)"
            )


def _is_whole_basis(factors: LowRank) -> bool:
    """Return whether ``C C^T + A^T A`` of the frozen halves is the identity."""
    parts = split(factors)
    down, up = parts["down_frozen"].flatten(1), parts["up_frozen"].flatten(1)
    unit = torch.eye(factors.rank, device=down.device)
    return bool((down @ down.T + up.T @ up - unit).norm() <= _BASIS_SLACK * unit.norm())
