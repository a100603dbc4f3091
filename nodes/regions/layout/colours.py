"""Make a region from each colour of a painted picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ....lora_ops import Region
from .sets import RegionDefaults, join_regions, region_from_mask

BACKGROUND = "#000000, #ffffff"  # default colours that are not regions
_MIN_FRACTION = 0.005  # of the picture; a smaller area is noise or the seam between two colours
_MAX_COLOURS = 24
_LEVELS = 256
_LINE = re.compile(r"(?P<name>.*?)[\s:=]*(?P<colour>#[0-9a-fA-F]{6})\Z")
_COLOUR_NAMES = {
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
    defaults: RegionDefaults,
    before: Sequence[Region] = (),
) -> tuple[Region, ...]:
    """Return a region for each colour of a painted picture.

    Args:
        picture: ``(batch, height, width, 3)``; only the first picture of the batch is used.
        colours: Lines of a name and a colour, such as ``cat #ff0000``; empty to use every colour
            of the picture that is not background and covers enough of it.
        background: Colours that are not regions, separated by commas.
        tolerance: Largest difference in red, green or blue of a pixel from its colour, in 0..1.
        defaults: Settings of the new regions.
        before: Regions that come first.

    Raises:
        ValueError: A line has no valid colour, a colour is not in the picture, or none is found.
    """
    pixels = (picture[0, ..., :3].detach().float().cpu() * (_LEVELS - 1)).round()  # (h, w, 3)
    reach = max(tolerance * (_LEVELS - 1), 0.5)
    left_out = [_colour(text) for text in re.split(r"[,\n]", background) if text.strip()]
    wanted = _listed_colours(colours) or _picture_colours(pixels, left_out, reach)
    if not wanted:
        raise ValueError(
            "the picture must have a colour that is no background and covers "
            f"{_MIN_FRACTION:.1%} of it, got none; paint regions in plain colours, or name their "
            "colours"
        )
    # Each pixel belongs to the nearest colour if that is within the tolerance.
    known = torch.tensor([*(colour for _, colour in wanted), *left_out]).float()
    distances = torch.stack([(pixels - colour).abs().amax(-1) for colour in known])
    nearest = distances.argmin(0).where(distances.amin(0) <= reach, torch.tensor(-1))
    added = []
    for number, (name, colour) in enumerate(wanted):
        mask = (nearest == number).float()
        code = "#{:02x}{:02x}{:02x}".format(*colour)
        if not bool(mask.any()):
            raise ValueError(
                f'the colour of region "{name}", {code}, must be in the picture, got no pixel '
                f"within a tolerance of {tolerance:g}; pick the colour from the picture or raise "
                "the tolerance"
            )
        added.append(replace(region_from_mask(name, mask, defaults), colour=code))
    return join_regions(before, added)


def _listed_colours(colours: str) -> list[tuple[str, tuple[int, int, int]]]:
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


def _picture_colours(
    pixels: Tensor, left_out: Sequence[tuple[int, int, int]], reach: float
) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the picture's colours, the most frequent first, each with a different name."""
    values, counts = pixels.reshape(-1, 3).long().unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True)
    known = torch.tensor(list(left_out)).reshape(-1, 3).float()
    found: list[tuple[int, int, int]] = []
    for index in order.tolist():
        if counts[index] < _MIN_FRACTION * counts.sum():
            break
        value = values[index]
        if len(known) and bool(((known - value).abs().amax(-1) <= reach).any()):
            continue
        known = torch.cat([known, value[None].float()])
        found.append(tuple(value.tolist()))
        if len(found) > _MAX_COLOURS:
            raise ValueError(
                f"the picture must have at most {_MAX_COLOURS} colours, got more; paint it in "
                "plain colours without shading, raise the tolerance, or name the colours"
            )
    names: list[str] = []
    for colour in found:
        name = min(_COLOUR_NAMES, key=lambda n: _distance(_COLOUR_NAMES[n], colour))
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
