"""Compute the shape of a layer's weight change from its tensors, for every kind of adapter.

ComfyUI multiplies the tensors of an adapter when the model is loaded; if their shapes don't agree,
it skips them with a line in the log. These checks find such tensors when the file is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...lora_ops.keys import ALPHA, DOWN, MID, UP

DORA, RESHAPE = "dora_scale", "reshape_weight"
BIASES = ("diff_b", "b_norm")  # parts that change a layer's bias; all others change its weight

Parts = Mapping[str, Tensor]  # a layer's tensors by the part names of ``keys.parse_key``

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
_PLAIN = ("diff", "set_weight", "w_norm")
_KINDS: dict[str, tuple[str, ...]] = {
    "LoRA": (DOWN, UP, MID, RESHAPE),
    "LoHa": _LOHA,
    "LoKr": _LOKR,
    "GLoRA": _GLORA,
    "OFT": ("oft_blocks", "rescale"),
    **{part: (part,) for part in _PLAIN},
}


@dataclass(frozen=True)
class Change:
    """The change that a layer's tensors make to a weight, by shape.

    Args:
        shape: ``(row, column)`` of the change as a matrix, with a kernel's axes merged into the
            columns; ``(row,)`` for rotations of the rows, which fit any columns; all axes if
            ``exact``.
        exact: Whether the change is stored in the shape of the weight.
        scale: Shape of DoRA's magnitudes; None without DoRA.
        padded: Shape to which the weight is padded; None without padding.
    """

    shape: tuple[int, ...]
    exact: bool = False
    scale: tuple[int, ...] | None = None
    padded: tuple[int, ...] | None = None

    def fits(self, weight: Sequence[int]) -> bool:
        """Return whether the change can be added to a weight of this shape."""
        weight = tuple(weight)
        if self.padded is not None:
            grown = len(self.padded) == len(weight) and all(
                new >= old for new, old in zip(self.padded, weight, strict=True)
            )
            if not grown:
                return False
            weight = self.padded
        if self.exact:
            return self.shape == weight
        if not weight or self.shape != (weight[0], math.prod(weight[1:]))[: len(self.shape)]:
            return False
        ones = (1,) * (len(weight) - 1)
        by_row, by_column = (weight[0], *ones), (1, *weight[1:2], *ones[1:])
        return self.scale in (None, by_row, by_column)


def change_of(parts: Parts) -> Change | None:
    """Return the change of a layer's weight; None if the tensors change only its bias.

    Raises:
        ValueError: Tensors are missing, superfluous or incompatible. The message is a continuation
            of the layer's name.
    """
    kinds = [kind for kind, names in _KINDS.items() if any(name in parts for name in names)]
    if len(kinds) > 1:
        raise ValueError(f"changes its weight in two ways, as {kinds[0]} and as {kinds[1]}")
    if all(bias in parts for bias in BIASES):
        raise ValueError("changes its bias twice")
    if not kinds:
        if DORA in parts or not any(bias in parts for bias in BIASES):
            raise ValueError(f"has {' and '.join(sorted(parts))} and nothing else")
        return None
    (kind,) = kinds
    if "b_norm" in parts and kind != "w_norm":
        raise ValueError("has b_norm without w_norm")
    whole = [name for name in _KINDS[kind] if name in parts and name != RESHAPE]
    if not all(parts[name].is_floating_point() for name in (*whole, DORA) if name in parts):
        raise ValueError("holds whole numbers for factors")
    if kind in _PLAIN:
        if DORA in parts:
            raise ValueError(f"has {DORA} without factors")
        return Change(tuple(parts[kind].shape), exact=True)
    shape = _SHAPES[kind]({name: tuple(parts[name].shape) for name in whole})
    if kind == "OFT" and parts["oft_blocks"].ndim == 4 and ALPHA not in parts:
        raise ValueError("lacks alpha")  # ComfyUI 0.30 skips butterfly rotations without alpha
    scale = tuple(parts[DORA].shape) if DORA in parts else None
    padded = _padded(parts[RESHAPE]) if RESHAPE in parts else None
    return Change(shape, scale=scale, padded=padded)


def bias_shape(parts: Parts) -> tuple[int, ...] | None:
    """Return the shape of the change of a layer's bias; None if there is none."""
    return next((tuple(parts[bias].shape) for bias in BIASES if bias in parts), None)


Shapes = Mapping[str, tuple[int, ...]]


def _lora(shapes: Shapes) -> tuple[int, ...]:
    if DOWN not in shapes or UP not in shapes:
        raise ValueError("has only one of its two factors")
    down, up, mid = shapes[DOWN], shapes[UP], shapes.get(MID)
    if len(down) < 2 or len(up) < 2:
        raise ValueError(f"has factors of shapes {down} and {up}")
    if math.prod(up[1:]) != down[0]:
        raise ValueError(f"has factors that do not share a rank, {down} and {up}")
    columns = math.prod(down[1:])
    if mid is None:
        return (up[0], columns)
    if len(mid) != 4 or mid[:2] != (down[0], down[0]) or columns != down[1]:
        raise ValueError(f"has a middle factor of shape {mid} between {down} and {up}")
    return (up[0], columns * mid[2] * mid[3])


def _loha(shapes: Shapes) -> tuple[int, ...]:
    _require(shapes, _LOHA[:4])
    if "hada_t1" in shapes or "hada_t2" in shapes:
        _require(shapes, _LOHA)
        halves = [
            _tucker(shapes[f"hada_w{n}_a"], shapes[f"hada_w{n}_b"], shapes[f"hada_t{n}"])
            for n in (1, 2)
        ]
    else:
        halves = [_product(shapes[f"hada_w{n}_a"], shapes[f"hada_w{n}_b"]) for n in (1, 2)]
    if halves[0] != halves[1]:
        raise ValueError(f"has products of shapes {halves[0]} and {halves[1]} to be multiplied")
    return halves[0]


def _lokr(shapes: Shapes) -> tuple[int, ...]:
    for n in (1, 2):
        if f"lokr_w{n}" in shapes:
            again = [name for name in shapes if name in (f"lokr_w{n}_a", f"lokr_w{n}_b")]
            if again or (n == 2 and "lokr_t2" in shapes):
                raise ValueError(f"has lokr_w{n} both whole and in factors")
        else:
            _require(shapes, (f"lokr_w{n}_a", f"lokr_w{n}_b"))
    first = shapes.get("lokr_w1") or _product(shapes["lokr_w1_a"], shapes["lokr_w1_b"])
    if "lokr_w2" in shapes:
        second = shapes["lokr_w2"]
    elif "lokr_t2" in shapes:
        second = _tucker(shapes["lokr_w2_a"], shapes["lokr_w2_b"], shapes["lokr_t2"])
    else:
        second = _product(shapes["lokr_w2_a"], shapes["lokr_w2_b"])
    if len(first) != 2 or len(second) not in (2, 4):
        raise ValueError(f"has Kronecker factors of shapes {first} and {second}")
    return (first[0] * second[0], first[1] * math.prod(second[1:]))


def _glora(shapes: Shapes) -> tuple[int, ...]:
    _require(shapes, _GLORA)
    flat = [(shapes[name][0], math.prod(shapes[name][1:])) for name in _GLORA]
    # Two layouts are in use; the axis of the rank distinguishes them.
    for a1, a2, b1, b2 in (flat, [flat[1], flat[0], flat[3], flat[2]]):
        if a1[1] == a2[0] == b1[1] == b2[0] and a1[0] == a2[1] and b2[1] % a1[0] == 0:
            return (b1[0], b2[1])
    raise ValueError(f"has factors of shapes {', '.join(map(str, flat))}")


def _oft(shapes: Shapes) -> tuple[int, ...]:
    _require(shapes, ("oft_blocks",))
    stages, blocks, rows, columns = _rotations(shapes["oft_blocks"])
    total = blocks * rows
    # Each stage of a butterfly rotation halves the blocks and doubles their spacing.
    butterfly = len(shapes["oft_blocks"]) == 4
    if not total or rows != columns or (butterfly and (rows % 2 or total % (rows << stages - 1))):
        raise ValueError(f"has rotations of shape {shapes['oft_blocks']}")
    rescale = shapes.get("rescale", (total, 1))
    if len(rescale) < 2 or not rescale[0] == math.prod(rescale) == total:
        raise ValueError(f"has rotations of {total} rows and a rescale of shape {rescale}")
    return (total,)


def _rotations(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return stages, blocks, rows and columns."""
    if len(shape) not in (3, 4):
        raise ValueError(f"has rotations of shape {shape}")
    stages, blocks, rows, columns = (1, *shape)[-4:]
    return stages, blocks, rows, columns


_SHAPES: dict[str, Callable[[Shapes], tuple[int, ...]]] = {
    "LoRA": _lora,
    "LoHa": _loha,
    "LoKr": _lokr,
    "GLoRA": _glora,
    "OFT": _oft,
}


def _require(shapes: Shapes, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ValueError(f"lacks {missing[0]}")


def _product(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        raise ValueError(f"has factors that do not share a rank, {left} and {right}")
    return (left[0], right[1])


def _tucker(
    left: tuple[int, ...], right: tuple[int, ...], core: tuple[int, ...]
) -> tuple[int, ...]:
    if len(left) != 2 or len(right) != 2 or core[:2] != (left[0], right[0]) or len(core) != 4:
        raise ValueError(f"has a core of shape {core} between {left} and {right}")
    return (left[1], right[1] * core[2] * core[3])


def _padded(reshape: Tensor) -> tuple[int, ...]:
    if reshape.ndim != 1 or reshape.is_floating_point() or reshape.numel() > 5:
        raise ValueError(f"has a {RESHAPE} that is no list of sizes")
    return tuple(int(size) for size in reshape)
