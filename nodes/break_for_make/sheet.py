"""Every content half in every style half: the LoRAs, a picture of each, and the sheet of all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.files.half import half_metadata
from ...training.files.lora_state import LoraState
from ..bridge.conditioning import encode_prompt
from ..bridge.drawing import DrawingBar, Sampling, draw, require_size
from ..bridge.families import identify
from ..bridge.inputs import list_input
from ..lora.apply import apply_lora
from ..pictures.contact_sheet import contact_sheet, drawable
from .make import made

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class SheetRequest:
    """The sheet node's inputs.

    Args:
        model: The base that the halves were trained on.
        clip: Its text encoder.
        vae: Its VAE.
        contents: Content halves, one per row.
        styles: Style halves, one per column.
        prompt: With ``{content}`` and ``{style}`` where their words go.
        negative: What every picture is guided away from.
        content_strength: Multiplies what a content half owns.
        style_strength: Multiplies what a style half owns.
        seed: Of the noise, the same for every picture.
        steps: Sampling steps.
        cfg: Guidance scale.
        sampler_name: Name of the sampler.
        scheduler: Name of the scheduler.
        width: Of a picture in pixels.
        height: Of a picture in pixels.
        labels: Whether rows and columns are named.
        content_words: A line per content in place of its token; an empty line keeps the token.
        style_words: The same for the styles.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    contents: Sequence[LoraState] = list_input()
    styles: Sequence[LoraState] = list_input()
    prompt: str
    negative: str
    content_strength: float
    style_strength: float
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    width: int
    height: int
    labels: bool
    content_words: Sequence[str] = list_input(())
    style_words: Sequence[str] = list_input(())

    @property
    def sampling(self) -> Sampling:
        """Return how every picture is sampled."""
        return Sampling(self.steps, self.cfg, self.sampler_name, self.scheduler)


@dataclass(frozen=True)
class Sheet:
    """What the sheet node gives.

    Args:
        sheet: The labelled sheet, ``(1, height, width, 3)``.
        pictures: Without labels, ``(content * style, height, width, 3)``, content by content.
        loras: What drew them, in the same order.
        text: Says in words what is where.
    """

    sheet: Tensor
    pictures: Tensor
    loras: list[LoraState]
    text: str


def half_sheet(request: SheetRequest) -> Sheet:
    """Return every content in every style, drawn with the same noise.

    Raises:
        ValueError: Halves, words, prompt or size are not what they must be; nothing is drawn then.
        RuntimeError: The base or the VAE gives NaN.
    """
    require_size(identify(request.model), request.width, request.height)
    loras = made(request.contents, request.styles, request.content_strength, request.style_strength)
    words = {
        "content": _words("content", request.contents, request.content_words),
        "style": _words("style", request.styles, request.style_words),
    }
    prompts = [
        filled(request.prompt, {"content": content, "style": style})
        for content in words["content"]
        for style in words["style"]
    ]
    conds = {prompt: encode_prompt(request.clip, prompt) for prompt in dict.fromkeys(prompts)}
    negative = encode_prompt(request.clip, request.negative)
    bar = DrawingBar(len(loras), request.sampling.steps)
    pictures = []
    for lora, prompt in zip(loras, prompts, strict=True):
        model, _ = apply_lora(request.model, None, lora, 1.0, 0.0)
        picture = draw(
            model,
            request.vae,
            conds[prompt],
            negative,
            request.seed,
            (request.width, request.height),
            request.sampling,
            bar.on_step,
        )
        pictures.append(picture)
        bar.on_picture(picture)
    drawn = torch.cat(pictures)
    rows = _named("content", words["content"])
    columns = _named("style", words["style"])
    text = f"rows: {', '.join(rows)}; columns: {', '.join(columns)}"
    sheet = (
        _labelled(drawn, rows, columns) if request.labels else contact_sheet(drawn, len(columns))
    )
    return Sheet(sheet, drawn, loras, text)


def _labelled(pictures: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Return the sheet with its rows and columns named, by number where no font has the letters."""
    names = (
        drawable(words, _numbered(role, len(words)))
        for role, words in (("content", rows), ("style", columns))
    )
    return contact_sheet(pictures, len(columns), *names)


def filled(prompt: str, words: Mapping[str, str]) -> str:
    """Return a prompt with its placeholders replaced.

    Args:
        prompt: With or without ``{name}``.
        words: By placeholder's name.

    Raises:
        ValueError: A placeholder is none of these, or there is no word for it.
    """

    def replaced(match: re.Match[str]) -> str:
        name = match[1].strip()
        if name not in words:
            raise ValueError(
                f"prompt may hold the placeholders {' and '.join(f'{{{key}}}' for key in words)}, "
                f"got {match[0]!r}; write one of these or leave the braces out"
            )
        if not words[name]:
            raise ValueError(
                f"prompt asks for {{{name}}}, got a {name} half that has no token; write its word "
                f"into {name}_words, or into the prompt in place of {{{name}}}"
            )
        return words[name]

    return _PLACEHOLDER.sub(replaced, prompt)


def _words(role: str, halves: Sequence[LoraState], given: Sequence[str]) -> list[str]:
    """Return one word or phrase per half: the one given, else its token, which may be empty."""
    lines = [line.strip() for line in "\n".join(given).rstrip().split("\n")]
    if len(lines) > len(halves):
        raise ValueError(
            f"{role}_words must be one line for each of the {len(halves)} {role} halves, got "
            f"{len(lines)}; leave out what is too much"
        )
    lines += [""] * (len(halves) - len(lines))
    return [line or half_metadata(half).token for line, half in zip(lines, halves, strict=True)]


def _named(role: str, words: Sequence[str]) -> list[str]:
    """Return what every row or column is called: its word, else its number."""
    numbers = _numbered(role, len(words))
    return [word or number for word, number in zip(words, numbers, strict=True)]


def _numbered(role: str, count: int) -> list[str]:
    """Return names for rows or columns without a word that can be drawn."""
    return [f"{role} {number}" for number in range(1, count + 1)]
