"""Auxiliary pictures from prompts alone: drawn once with the base, then read from their files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.sd
import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ...training.files.tensor_file import replace_file
from ...training.randomness import generator_for
from ..bridge.digests import content_digest
from ..bridge.drawing import DrawingBar, Sampling, as_pil, draw, require_size, told_guidance
from ..bridge.output_folder import runs_root
from ..bridge.sampling_options import strip_sampling
from ..trainer.base import Base

FOLDER = "auxiliary"
_FORMAT = 1
"""Of the drawing; another number draws all pictures anew."""
_PIXELS = "pastiche.pixels"
_PROMPT = "pastiche.prompt"


def auxiliary_pictures(
    base: Base,
    prompts: Sequence[str],
    seed: int,
    side: int,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """Return what the base draws for every prompt, IMAGEs ``(1, side, side, 3)`` in 0..1.

    A picture that lies below ``output/pastiche/auxiliary`` already is read, not drawn; if all do,
    nothing is loaded. What is returned always comes from the file, so that the first run has the
    same numbers as every later one. The noise of a picture depends on the seed, its prompt, and
    how often that prompt came before it: others may be added or moved without changing it.

    Sampling-time patches of the MODEL are left out, as training leaves them out.

    Args:
        base: What draws; never changed.
        prompts: One per picture; none gives no pictures.
        seed: Of the noise.
        side: Of the square pictures, in pixels.
        sampling: Steps, guidance and sampler; ``None`` is the family's.

    Raises:
        ValueError: The base is not supported, a prompt is empty, or the side doesn't fit.
        RuntimeError: The base or the VAE gives NaN, or the disk is full.
    """
    if not prompts:
        return []
    require_size(base.family, side, side)
    if base.clip is None or base.vae is None:
        raise ValueError(
            "auxiliary pictures are drawn with the base's CLIP and VAE, got none for "
            f"{'clip' if base.clip is None else 'vae'}; connect the checkpoint's"
        )
    texts = [prompt.strip() for prompt in prompts]
    if not all(texts):
        raise ValueError(
            "an auxiliary prompt must describe a picture, got an empty text for prompt "
            f'{texts.index("") + 1}; write for example "a photo of a teapot"'
        )
    sampling = sampling or base.family.samplings.auxiliary
    pieces = {
        "format": _FORMAT,
        "model": base.model_digest,
        "clip": base.clip_digest,
        "vae": base.vae_digest,
        "sampling": asdict(sampling),
        "side": side,
    }
    places = list(_places(pieces, base.clip, texts, seed))
    found = {place: _read(place, side) for place, _, _ in places}
    missing = [entry for entry in places if found[entry[0]] is None]
    if missing:
        _draw_all(base, missing, side, sampling)
        found |= {place: _read(place, side) for place, _, _ in missing}
    return [_required(place, found[place]) for place, _, _ in places]


def _places(
    shared: Mapping[str, Any], clip: comfy.sd.CLIP, texts: Sequence[str], seed: int
) -> Iterator[tuple[Path, str, int]]:
    """Yield every picture's file, prompt and noise seed.

    The tokens decide too: they hold the embeddings that a prompt names.
    """
    for index, text in enumerate(texts):
        noise_seed = generator_for(seed, "auxiliary", text, texts[:index].count(text))
        pieces = {
            **shared,
            "prompt": text,
            "tokens": [content_digest(clip.tokenize(words)) for words in (text, "")],
            "noise": noise_seed.initial_seed(),
        }
        file = runs_root() / FOLDER / f"{content_digest(pieces)}.png"
        yield file, text, noise_seed.initial_seed()


def _draw_all(
    base: Base, missing: Sequence[tuple[Path, str, int]], side: int, sampling: Sampling
) -> None:
    """Draw pictures and write each as soon as it is there."""
    conds = {text: base.caption(text) for _, text, _ in missing}
    negative = base.caption("")
    conds = {text: told_guidance(cond, base.family.samplings) for text, cond in conds.items()}
    plain = base.model.clone()
    strip_sampling(plain)
    bar = DrawingBar(len(missing), sampling.steps)
    for place, text, noise_seed in missing:
        size = (side, side)
        picture = draw(
            plain, base.vae, conds[text], negative, noise_seed, size, sampling, bar.on_step
        )
        _write(place, picture, text)
        bar.on_picture(picture)


def _write(place: Path, picture: Tensor, prompt: str) -> None:
    """Write a picture as a PNG that says what is in it, whole or not at all."""
    image = as_pil(picture)
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt(_PROMPT, prompt)
    notes.add_text(_PIXELS, _pixels_digest(image))
    png = io.BytesIO()
    image.save(png, "PNG", pnginfo=notes)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, png.getvalue())


def _read(place: Path, side: int) -> Tensor | None:
    """Return the picture in a file, ``None`` if there is none or it is damaged in any bit."""
    try:
        with Image.open(place, formats=["PNG"]) as opened:
            image = opened.convert("RGB")
            noted = opened.info.get(_PIXELS)  # after decoding, which reads all of the file
    except (OSError, SyntaxError, ValueError):  # what PIL raises for a file that is no whole PNG
        return None
    if image.size != (side, side) or noted != _pixels_digest(image):
        return None
    with torch.inference_mode(False):
        return torch.from_numpy(np.array(image)).float().div(255.0)[None]


def _required(place: Path, picture: Tensor | None) -> Tensor:
    if picture is None:
        raise RuntimeError(
            f"the picture that was drawn must lie whole in {str(place)!r}, got a damaged or "
            "missing file; check that disk and queue again"
        )
    return picture


def _pixels_digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
