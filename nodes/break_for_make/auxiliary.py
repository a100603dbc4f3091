"""Draw auxiliary pictures from prompts with the base, and cache them as files."""

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
from ..bridge.drawing import DrawingBar, Sampling, as_pil, draw, require_size, with_guidance
from ..bridge.output_folder import runs_root
from ..bridge.sampling_options import strip_sampling
from ..trainer.base import Base

FOLDER = "auxiliary"
_FORMAT = 1  # version of the cache; a new number invalidates all cached pictures
_PIXELS = "pastiche.pixels"
_PROMPT = "pastiche.prompt"


def auxiliary_pictures(
    base: Base,
    prompts: Sequence[str],
    seed: int,
    side: int,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """Return the base's pictures of all prompts, IMAGEs ``(1, side, side, 3)`` in 0..1.

    A picture that is cached below ``output/pastiche/auxiliary`` is read instead of drawn; if all
    are cached, no model is loaded. Pictures are always returned from their files, so that the first
    run uses the same numbers as later ones. The noise of a picture depends only on the seed, its
    prompt and the number of equal prompts before it, so other prompts may be added or moved.

    Sampling-time patches of the MODEL are ignored, as in training.

    Args:
        base: Base that draws the pictures; never changed.
        prompts: One prompt per picture.
        seed: Seed of the noise.
        side: Side of the square pictures in pixels.
        sampling: Steps, guidance and sampler; None uses those of the family.

    Raises:
        ValueError: The base is not supported, a prompt is empty, or the side is not valid.
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
    """Yield file, prompt and noise seed of every picture.

    The file's name depends on the tokens too, which contain the embeddings a prompt refers to.
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
    """Draw pictures and write each as soon as it is finished."""
    conds = {text: base.caption(text) for _, text, _ in missing}
    negative = base.caption("")
    conds = {text: with_guidance(cond, base.family.samplings) for text, cond in conds.items()}
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
    """Write a picture atomically as a PNG, with its prompt and a digest of its pixels."""
    image = as_pil(picture)
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt(_PROMPT, prompt)
    notes.add_text(_PIXELS, _pixels_digest(image))
    png = io.BytesIO()
    image.save(png, "PNG", pnginfo=notes)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, png.getvalue())


def _read(place: Path, side: int) -> Tensor | None:
    """Return the picture in a file, or None if the file is missing or damaged."""
    try:
        with Image.open(place, formats=["PNG"]) as opened:
            image = opened.convert("RGB")
            digest = opened.info.get(_PIXELS)  # available only after decoding the whole file
    except (OSError, SyntaxError, ValueError):  # PIL's errors for damaged PNGs
        return None
    if image.size != (side, side) or digest != _pixels_digest(image):
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
