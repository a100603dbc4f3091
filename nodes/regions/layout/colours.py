"""Regions out of a painted picture: one for each colour."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ....lora_ops import Region
from .sets import Manner, joined_regions, masked

BACKGROUND = "#000000, #ffffff"
"""Colours that are no region by default."""

SMALLEST_SHARE = 0.005
"""Of the picture: what is less is the seam between two colours, or noise."""
_MOST_FOUND = 24
_LEVELS = 256
_LINE = re.compile(r"(?P<name>.*?)[\s:=]*(?P<colour>#[0-9a-fA-F]{6})\Z")
_NAMES = {
    "red": (255, 0, 0),
    "green": (0, 160, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "orange": (255, 140, 0),
    "purple": (140, 0, 200),
    "pink": (255, 150, 200),
    "cyan": (0, 255, 255),
    "brown": (120, 70, 30),
    "grey": (128, 128, 128),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


def regions_from_colours(
    picture: Tensor,
    colours: str,
    background: str,
    tolerance: float,
    manner: Manner,
    before: Sequence[Region] = (),
) -> tuple[Region, ...]:
    """Return a region for each colour of a painted picture.

    Args:
        picture: ``(batch, height, width, 3)``; the first one is read.
        colours: Lines of a name and a colour, such as ``cat #ff0000``; empty to take every colour
            of the picture that is no background and covers a little of it.
        background: Colours that are no region, parted by commas.
        tolerance: How far a pixel's red, green and blue may lie from a colour, in shares of full.
        manner: How they act.
        before: Regions that come first.

    Raises:
        ValueError: A line is no colour, a colour is not in the picture, or none is found.
    """
    pixels = (picture[0, ..., :3].detach().float().cpu() * (_LEVELS - 1)).round()  # (h, w, 3)
    reach = max(tolerance * (_LEVELS - 1), 0.5)
    left_out = [_colour(text) for text in re.split(r"[,\n]", background) if text.strip()]
    wanted = _written(colours) or _found(pixels, left_out, reach)
    if not wanted:
        raise ValueError(
            "the picture must have a colour that is no background and covers "
            f"{SMALLEST_SHARE:.1%} of it, got none; paint regions in plain colours, or name their "
            "colours"
        )
    # Each pixel belongs to the nearest of all colours, if that is near enough.
    known = torch.tensor([*(colour for _, colour in wanted), *left_out]).float()
    distances = torch.stack([(pixels - colour).abs().amax(-1) for colour in known])
    nearest = distances.argmin(0).where(distances.amin(0) <= reach, torch.tensor(-1))
    added = []
    for number, (name, colour) in enumerate(wanted):
        mask = (nearest == number).float()
        written = "#{:02x}{:02x}{:02x}".format(*colour)
        if not bool(mask.any()):
            raise ValueError(
                f'the colour of region "{name}", {written}, must be in the picture, got no pixel '
                f"within a tolerance of {tolerance:g}; pick the colour from the picture or raise "
                "the tolerance"
            )
        region = masked(name, mask, manner)
        added.append(Region(**{**vars(region), "colour": written}))
    return joined_regions(before, added)


def _written(colours: str) -> list[tuple[str, tuple[int, int, int]]]:
    found = []
    for number, line in enumerate(colours.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.match(line.strip())
        if match is None or not match["name"]:
            raise ValueError(
                f'colours, line {number}: it must be a name and a colour such as "cat #ff0000", '
                f"got {line.strip()[:80]!r}; correct it there"
            )
        found.append((match["name"], _colour(match["colour"])))
    return found


def _found(
    pixels: Tensor, left_out: Sequence[tuple[int, int, int]], reach: float
) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the picture's colours, the most frequent first, each with a name of its own."""
    values, counts = pixels.reshape(-1, 3).long().unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True)
    known = torch.tensor(list(left_out)).reshape(-1, 3).float()
    found: list[tuple[int, int, int]] = []
    for index in order.tolist():
        if counts[index] < SMALLEST_SHARE * counts.sum():
            break
        value = values[index]
        if len(known) and bool(((known - value).abs().amax(-1) <= reach).any()):
            continue
        known = torch.cat([known, value[None].float()])
        found.append(tuple(value.tolist()))
        if len(found) > _MOST_FOUND:
            raise ValueError(
                f"the picture must have at most {_MOST_FOUND} colours, got more; paint it in plain "
                "colours without shading, raise the tolerance, or name the colours"
            )
    names: list[str] = []
    for colour in found:
        name = min(_NAMES, key=lambda n: _distance(_NAMES[n], colour))
        same = sum(other.split(" ")[0] == name for other in names)
        names.append(f"{name} {same + 1}" if same else name)
    return list(zip(names, found, strict=True))


def _distance(one: Sequence[int], other: Sequence[int]) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _colour(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text.strip()):
        raise ValueError(
            f"a colour must be written as #rrggbb, got {text.strip()[:80]!r}; correct it"
        )
    number = int(text.strip()[1:], 16)
    return number >> 16, number >> 8 & 255, number & 255
