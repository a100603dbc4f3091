"""Make a LoRA's thumbnail, stored in its file, and the preview picture next to the file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...training.files.tensor_file import write_new

_THUMBNAIL_SIDE = 256  # recommended by the modelspec
_PREVIEW_SIDE = 512
# ComfyUI and common model managers show ``name.png`` as the preview of ``name.safetensors``.
PREVIEW_ENDING = ".png"


def thumbnail(image: Tensor | None) -> str:
    """Return an IMAGE's first picture as the data URI of a small JPEG, about 10 kB."""
    if image is None:
        return ""
    jpeg = _encoded(image, _THUMBNAIL_SIDE, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def write_preview(lora: Path, image: Tensor | None) -> None:
    """Write an IMAGE's first picture next to a LoRA file, unless there is a picture already."""
    path = lora.with_suffix(PREVIEW_ENDING)
    if image is not None and not path.exists():
        write_new(path, _encoded(image, _PREVIEW_SIDE, "PNG"))


def _encoded(image: Tensor, side: int, kind: str) -> bytes:
    colours = image[0].detach().float().cpu().nan_to_num()[..., :3]  # (height, width, 1..3)
    if colours.shape[-1] < 3:
        colours = colours[..., :1].expand(-1, -1, 3)
    picture = Image.fromarray((colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, quality=85)
    return buffer.getvalue()
