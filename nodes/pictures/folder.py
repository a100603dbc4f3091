"""A folder of pictures under ComfyUI's input as training data: pictures, captions, masks, report."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from .buckets import Size, bucket_for, counted, share_kept
from .caption_files import read_caption
from .fitted_image import onto_frame
from .picture_files import PICTURE_ENDINGS, read_mask, read_picture

_MASK_ENDING = ".mask"
_CUT = 0.15
"""Of a picture; more is told."""


@dataclass(frozen=True)
class TrainingImages:
    """What the loader hands on: as many pictures as captions and masks, and what it found.

    Args:
        images: IMAGE ``(1, height, width, 3)`` each.
        captions: As many.
        masks: MASK ``(1, height, width)`` each, white where the picture counts.
        report: Counts and problems, one a line.
    """

    images: list[Tensor]
    captions: list[str]
    masks: list[Tensor]
    report: str


def training_folders() -> list[str]:
    """Return the folders under input that hold a picture, by their path from there."""
    root = Path(folder_paths.get_input_directory())
    found = []
    for place, folders, names in os.walk(root):  # links are not followed
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(Path(name).suffix.lower() in PICTURE_ENDINGS for name in names):
            found.append(Path(place).relative_to(root).as_posix())
    return sorted(found, key=natural)


def training_folder(name: str) -> Path:
    """Return a folder under input.

    Raises:
        ValueError: The name leads out of input, or there is no such folder.
    """
    root = Path(folder_paths.get_input_directory())
    if not folder_paths.is_within_directory(str(root), str(root / name)):
        raise ValueError(
            f"folder must lie in ComfyUI's input folder, got {name!r}, which leads out of it; "
            "copy the pictures into a folder there"
        )
    folder = root / name
    if not name or not folder.is_dir():
        raise ValueError(
            f"folder must be a folder in ComfyUI's input folder, got {name!r}, which is none; "
            "copy the pictures there and refresh the page with R"
        )
    return folder


def refusal(name: str) -> str | None:
    """Return why a folder can't be used, ``None`` if it can."""
    try:
        training_folder(name)
    except ValueError as error:
        return str(error)
    return None


def folder_fingerprint(name: str) -> str:
    """Return what changes when a file of the folder does."""
    digest = hashlib.sha256()
    for file in _files(training_folder(name)):
        state = file.lstat()
        digest.update(f"{file.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def load_training_images(
    folder: str, default_caption: str, resolution: int, bucket_step: int
) -> TrainingImages:
    """Return the pictures of a folder with their captions and masks, in natural order.

    Args:
        folder: Its path from input.
        default_caption: For pictures without a text file.
        resolution: Side of the square whose area larger pictures are brought to; 0 leaves all
            pictures as they are.
        bucket_step: Sides are cut to a multiple of this.

    Raises:
        ValueError: The folder has no picture, or one can't be used; the message names it.
    """
    place = training_folder(folder)
    files = _files(place)
    pictures = [file for file in files if _is_picture(file) and not _is_mask(file)]
    if not pictures:
        raise ValueError(
            f"folder must hold pictures ({', '.join(sorted(PICTURE_ENDINGS))}), got none in "
            f"{folder!r}; copy some there"
        )
    masks = {Path(file.stem).stem: file for file in files if _is_picture(file) and _is_mask(file)}
    texts = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
    stems = {file.stem for file in pictures}
    problems = [
        *(f"{file.name} belongs to no picture" for key, file in masks.items() if key not in stems),
        *(f"{file.name} belongs to no picture" for key, file in texts.items() if key not in stems),
    ]
    bar = comfy.utils.ProgressBar(len(pictures))
    loaded = []
    for file in pictures:
        comfy.model_management.throw_exception_if_processing_interrupted()
        one = _load(file, masks.get(file.stem), texts.get(file.stem), default_caption.strip())
        problems += one.problems
        fitted = one.bucketed(resolution, bucket_step)
        problems += _cut_line(one, fitted)
        loaded.append(fitted)
        bar.update(1)
    report = _report(folder, loaded, problems)
    return TrainingImages(
        [one.pixels[None] for one in loaded],
        [one.caption for one in loaded],
        [one.mask[None] for one in loaded],
        report,
    )


@dataclass(frozen=True)
class _Loaded:
    """One picture with what belongs to it, and sentences on what is odd about it."""

    name: str
    pixels: Tensor
    mask: Tensor
    masked: bool
    caption: str
    captioned: bool
    problems: Sequence[str]

    @property
    def size(self) -> Size:
        return self.pixels.shape[0], self.pixels.shape[1]

    def bucketed(self, resolution: int, step: int) -> _Loaded:
        if not resolution:
            return self
        both = torch.cat([self.pixels, self.mask[..., None]], dim=-1)
        fitted = onto_frame(both, bucket_for(self.size, resolution, step), 1).pixels
        return _Loaded(
            name=self.name,
            pixels=fitted[..., :3].contiguous(),
            mask=fitted[..., 3].contiguous(),
            masked=self.masked,
            caption=self.caption,
            captioned=self.captioned,
            problems=self.problems,
        )


def _load(file: Path, mask_file: Path | None, text: Path | None, default: str) -> _Loaded:
    picture = read_picture(file)
    problems = [f"{file.name} {note}" for note in picture.notes]
    mask = picture.alpha
    if mask_file is not None:
        mask = read_mask(mask_file, picture)
    caption = None
    if text is not None:
        caption, notes = read_caption(text)
        problems += [f"{text.name} {note}" for note in notes]
    captioned = bool(caption)
    if not captioned:
        reason = "is empty" if text is not None else "is missing"
        name = text.name if text is not None else f"{file.stem}.txt"
        use = "the default caption" if default else "no caption"
        problems.append(f"{name} {reason}: {file.name} gets {use}")
    whole = mask is None
    if mask is None:
        mask = torch.ones(picture.pixels.shape[:2])
    elif not bool((mask > 0).any()):
        source = file if mask_file is None else mask_file
        raise ValueError(
            f"a mask must be white where its picture counts, got one that is black everywhere "
            f"in {source.name}; paint it or remove it"
        )
    return _Loaded(
        name=file.name,
        pixels=picture.pixels,
        mask=mask,
        masked=not whole,
        caption=caption or default,
        captioned=captioned,
        problems=problems,
    )


def _cut_line(whole: _Loaded, fitted: _Loaded) -> Iterator[str]:
    kept = share_kept(whole.size, fitted.size)
    if kept < 1 - _CUT:
        width, height = whole.size[1], whole.size[0]
        yield f"{whole.name} ({width} x {height}) is cut to {kept:.0%} of itself; crop it yourself"


def _report(folder: str, loaded: Sequence[_Loaded], problems: Sequence[str]) -> str:
    own = sum(one.captioned for one in loaded)
    masked = sum(one.masked for one in loaded)
    lines = [
        f"{len(loaded)} pictures from {folder}: {counted(one.size for one in loaded)}",
        f"{own} captions from text files, {len(loaded) - own} by default; {masked} masks",
        *problems,
    ]
    return "\n".join(lines)


def _files(folder: Path) -> list[Path]:
    """Return the folder's own files in natural order.

    Raises:
        ValueError: One is a link out of input.
    """
    root = folder_paths.get_input_directory()
    files = [
        file for file in folder.iterdir() if not file.is_dir() and not file.name.startswith(".")
    ]
    for file in files:
        if not folder_paths.is_within_directory(root, str(file)):
            raise ValueError(
                "a training picture must lie in ComfyUI's input folder, got a link out of it: "
                f"{file.name}; copy the file there"
            )
    return sorted(files, key=lambda file: natural(file.name))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts names as people do: 2 before 10, letters whatever their case."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURE_ENDINGS


def _is_mask(file: Path) -> bool:
    return Path(file.stem).suffix.lower() == _MASK_ENDING
