"""Join every content half with every style half, and draw the results on one contact sheet."""

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
from .make import join_halves

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class SheetRequest:
    """The inputs of the sheet node.

    Args:
        model: Base model of the halves.
        clip: Text encoder of the base.
        vae: VAE of the base.
        contents: Content halves, one per row.
        styles: Style halves, one per column.
        prompt: Prompt with the placeholders ``{content}`` and ``{style}``.
        negative: Negative prompt.
        content_strength: Multiplier of the part that a content half owns.
        style_strength: Multiplier of the part that a style half owns.
        seed: Seed of the noise, which is the same for all pictures.
        steps: Sampling steps.
        cfg: Guidance scale.
        sampler_name: Name of the sampler.
        scheduler: Name of the scheduler.
        width: Width of a picture in pixels.
        height: Height of a picture in pixels.
        labels: Whether rows and columns have labels.
        content_words: One line per content that replaces its token; an empty line keeps it.
        style_words: One line per style that replaces its token; an empty line keeps it.
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
        """Return the sampling settings of the pictures."""
        return Sampling(self.steps, self.cfg, self.sampler_name, self.scheduler)


@dataclass(frozen=True)
class Sheet:
    """The outputs of the sheet node.

    Args:
        sheet: ``(1, height, width, 3)``, contact sheet of all pictures.
        pictures: ``(content * style, height, width, 3)``, all styles of the first content first.
        loras: LoRAs that drew the pictures, in the same order.
        text: Description of the rows and columns.
    """

    sheet: Tensor
    pictures: Tensor
    loras: list[LoraState]
    text: str


def half_sheet(request: SheetRequest) -> Sheet:
    """Draw every content in every style with the same noise.

    Raises:
        ValueError: Halves, words, prompt or size are not valid; nothing is drawn.
        RuntimeError: The base or the VAE gives NaN.
    """
    require_size(identify(request.model), request.width, request.height)
    loras = join_halves(
        request.contents, request.styles, request.content_strength, request.style_strength
    )
    words = {
        "content": _words("content", request.contents, request.content_words),
        "style": _words("style", request.styles, request.style_words),
    }
    prompts = [
        fill_placeholders(request.prompt, {"content": content, "style": style})
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
    batch = torch.cat(pictures)
    rows = _labels("content", words["content"])
    columns = _labels("style", words["style"])
    text = f"rows: {', '.join(rows)}; columns: {', '.join(columns)}"
    sheet = (
        _labelled_sheet(batch, rows, columns)
        if request.labels
        else contact_sheet(batch, len(columns))
    )
    return Sheet(sheet, batch, loras, text)


def _labelled_sheet(pictures: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Return the sheet with labels; words that no font can render are replaced by numbers."""
    names = (
        drawable(words, _numbered_labels(role, len(words)))
        for role, words in (("content", rows), ("style", columns))
    )
    return contact_sheet(pictures, len(columns), *names)


def fill_placeholders(prompt: str, words: Mapping[str, str]) -> str:
    """Return a prompt with its placeholders replaced.

    Args:
        prompt: Prompt with any number of placeholders such as ``{name}``.
        words: Words by the name of the placeholder.

    Raises:
        ValueError: A placeholder is unknown, or its word is empty.
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
    """Return one word or phrase per half: the given one, or else the token, which may be empty."""
    lines = [line.strip() for line in "\n".join(given).rstrip().split("\n")]
    if len(lines) > len(halves):
        raise ValueError(
            f"{role}_words must be one line for each of the {len(halves)} {role} halves, got "
            f"{len(lines)}; leave out what is too much"
        )
    lines += [""] * (len(halves) - len(lines))
    return [line or half_metadata(half).token for line, half in zip(lines, halves, strict=True)]


def _labels(role: str, words: Sequence[str]) -> list[str]:
    """Return the label of every row or column: its word, or else its number."""
    numbers = _numbered_labels(role, len(words))
    return [word or number for word, number in zip(words, numbers, strict=True)]


def _numbered_labels(role: str, count: int) -> list[str]:
    """Return numbered labels for rows or columns."""
    return [f"{role} {number}" for number in range(1, count + 1)]
