"""Plot a fusion's report: the loss of every concept by fusion and by plain averaging."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..pictures.contact_sheet import INK, PAPER
from .report import STAGE_NAMES, FusionReport, LayerResult

FUSED, AVERAGED, GRID = (31, 119, 180), (214, 124, 62), (222, 220, 214)
_WIDTH, _PANEL = 960, 220
_LEFT, _TOP, _BOTTOM = 64, 34, 30
_AXIS_END = 1.5  # largest lost fraction on the axis; larger ones are drawn there


def report_plot(report: FusionReport) -> Tensor:
    """Return an IMAGE ``(1, height, width, 3)``: a panel per concept, two marks per layer."""
    panels = [
        _panel(concept.name, index, report.layers) for index, concept in enumerate(report.concepts)
    ]
    legend = Image.new("RGB", (_WIDTH, 44), PAPER)
    pen, font = ImageDraw.Draw(legend), ImageFont.load_default(15)
    pen.text((_LEFT, 14), "share of each concept's effect that is lost, by layer:", INK, font)
    pen.text((_LEFT + 400, 14), "fused", FUSED, font)
    pen.text((_LEFT + 470, 14), "plain average", AVERAGED, font)
    whole = np.concatenate([np.asarray(picture) for picture in (legend, *panels)])
    return torch.from_numpy(whole.copy()).float().div(255.0)[None]


def _panel(name: str, index: int, layers: Sequence[LayerResult]) -> Image.Image:
    """Return the panel of the concept with this name and index."""
    paper = Image.new("RGB", (_WIDTH, _PANEL), PAPER)
    pen = ImageDraw.Draw(paper)
    title, small = ImageFont.load_default(15), ImageFont.load_default(12)
    pen.text((_LEFT, 8), name, INK, title)
    right, floor = _WIDTH - 20, _PANEL - _BOTTOM
    for share in (0.0, 0.5, 1.0, _AXIS_END):
        y = _height(share)
        pen.line((_LEFT, y, right, y), GRID)
        pen.text((_LEFT - 8, y), f"{share:.0%}", INK, small, anchor="rm")
    shown = [layer for layer in layers if layer.residuals[index] is not None]
    if not shown:
        pen.text((_LEFT, _PANEL // 2), "no layer is changed by this concept", INK, small)
        return paper
    step = (right - _LEFT) / len(shown)
    before = ""
    for number, layer in enumerate(shown):
        x = _LEFT + (number + 0.5) * step
        if layer.stage != before:
            pen.line((x - step / 2, _TOP, x - step / 2, floor), GRID)
            pen.text((x - step / 2 + 2, floor + 8), STAGE_NAMES[layer.stage], INK, small)
            before = layer.stage
        for share, colour in (
            (layer.average_residuals[index], AVERAGED),
            (layer.residuals[index], FUSED),
        ):
            y = _height(share or 0.0)
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
    return paper


def _height(share: float) -> float:
    span = _PANEL - _TOP - _BOTTOM
    return _TOP + span * (1.0 - min(share, _AXIS_END) / _AXIS_END)
