"""Draw regions with their colours and names over a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ....lora_ops import Region, region_mask
from ...pictures.contact_sheet import PAPER, drawable, named_font

_FONT_SIZES_PER_SIDE = 24  # the font size is the picture's shorter side divided by this
_MIN_FONT_SIZE = 11  # pixels


def drawn_regions(
    regions: Sequence[Region], width: int, height: int, picture: Tensor | None, opacity: float
) -> Tensor:
    """Return the regions over a picture or on plain paper, ``(batch, height, width, 3)``.

    Args:
        regions: Regions; later ones are drawn over earlier ones.
        width: Width of the paper.
        height: Height of the paper.
        picture: ``(batch, height, width, 3)``, whose size takes precedence; None for paper.
        opacity: Opacity of the colours.
    """
    if picture is None:
        paper = torch.tensor(PAPER).float().div(255.0)
        canvas = paper.expand(1, height, width, 3).clone()
    else:
        canvas = picture[..., :3].detach().float().cpu().clone()
    _, height, width, _ = canvas.shape
    for region in regions:
        mask = region_mask(region, (height, width))[None, :, :, None] * opacity
        canvas = canvas * (1 - mask) + torch.tensor(_rgb(region)) * mask
    return torch.stack([_labelled(one, regions) for one in canvas])


def region_masks(regions: Sequence[Region], width: int, height: int, name: str) -> Tensor:
    """Return the mask ``(1, height, width)`` of all regions, or of the region with a name.

    Raises:
        ValueError: There is no region with that name.
    """
    name = name.strip()
    names = [region.name for region in regions]
    if name and name not in names:
        raise ValueError(
            f'there must be a region of the name "{name}", got '
            f"{', '.join(names) or 'none'}; write one of these, or nothing for all"
        )
    chosen = [one for one in regions if name in ("", one.name)]
    masks = [region_mask(region, (height, width)) for region in chosen]
    return torch.stack([torch.zeros(height, width), *masks]).amax(0, keepdim=True)


def region_list(regions: Sequence[Region]) -> str:
    """Return the node's text, with one region per line."""
    if not regions:
        return "no regions"
    lines = []
    for region in regions:
        box = region.box
        where = f"{box.left:.0%} to {box.right:.0%} across, {box.top:.0%} to {box.bottom:.0%} down"
        lines.append(f"{region.name}: {where}{', by mask' if region.mask is not None else ''}")
    return "\n".join(lines)


def _labelled(canvas: Tensor, regions: Sequence[Region]) -> Tensor:
    height, width = canvas.shape[:2]
    paper = Image.fromarray((canvas.clamp(0, 1) * 255).round().byte().numpy())
    pen = ImageDraw.Draw(paper)
    size = max(_MIN_FONT_SIZE, min(height, width) // _FONT_SIZES_PER_SIDE)
    names = drawable(
        [one.name for one in regions], [f"region {i}" for i in range(1, len(regions) + 1)]
    )
    for region, name in zip(regions, names, strict=True):
        box = region.box
        left, top = box.left * width, box.top * height
        right, bottom = box.right * width - 1, box.bottom * height - 1
        colour = tuple(round(part * 255) for part in _rgb(region))
        if region.mask is None:
            pen.rectangle((left, top, right, bottom), outline=colour, width=max(2, size // 8))
        font = named_font(name, size)
        x, y = (max(left, 0) + min(right, width)) / 2, (max(top, 0) + min(bottom, height)) / 2
        pen.text(
            (x, y), name, "white", font, anchor="mm", stroke_width=size // 8, stroke_fill=(0, 0, 0)
        )
    return torch.from_numpy(np.array(paper)).float().div(255.0)


def _rgb(region: Region) -> tuple[float, float, float]:
    number = int((region.colour or "#808080")[1:], 16)
    return (number >> 16) / 255, (number >> 8 & 255) / 255, (number & 255) / 255
