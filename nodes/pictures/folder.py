"""Load a folder of pictures below ComfyUI's input folder, with captions, masks and a report."""

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

from .buckets import Size, bucket_for, kept_fraction, size_summary
from .caption_files import read_caption_file
from .fitted_image import onto_frame
from .picture_files import PICTURE_ENDINGS, read_mask, read_picture

_MASK_ENDING = ".mask"
_MAX_CROPPED = 0.15  # fraction of a picture; a crop that removes more is reported


@dataclass(frozen=True)
class TrainingImages:
    """The loaded pictures with their captions and masks, and a report.

    Args:
        images: One IMAGE ``(1, height, width, 3)`` per picture.
        captions: One caption per picture.
        masks: One MASK ``(1, height, width)`` per picture, white where the picture counts.
        report: Counts and problems, one per line.
    """

    images: list[Tensor]
    captions: list[str]
    masks: list[Tensor]
    report: str


def training_folders() -> list[str]:
    """Return the folders below input that hold pictures, as paths relative to input."""
    root = Path(folder_paths.get_input_directory())
    found = []
    for place, folders, names in os.walk(root):  # links are not followed
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(Path(name).suffix.lower() in PICTURE_ENDINGS for name in names):
            found.append(Path(place).relative_to(root).as_posix())
    return sorted(found, key=natural_sort_key)


def training_folder(name: str) -> Path:
    """Return the path of a folder below input.

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


def folder_error(name: str) -> str | None:
    """Return the reason why a folder can't be used, ``None`` if it can."""
    try:
        training_folder(name)
    except ValueError as error:
        return str(error)
    return None


def folder_fingerprint(name: str) -> str:
    """Return a digest that changes whenever a file of the folder changes."""
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
        folder: Path of the folder, relative to input.
        default_caption: Caption of pictures without a text file.
        resolution: Side of the square to whose area larger pictures are reduced; 0 keeps all
            pictures unchanged.
        bucket_step: Number of which the sides become multiples.

    Raises:
        ValueError: The folder has no picture, or a picture can't be used; the message names it.
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
        problems += _crop_warnings(one, fitted)
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
class _LoadedPicture:
    """One picture with its caption and mask, and sentences about its problems."""

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

    def bucketed(self, resolution: int, step: int) -> _LoadedPicture:
        if not resolution:
            return self
        both = torch.cat([self.pixels, self.mask[..., None]], dim=-1)
        fitted = onto_frame(both, bucket_for(self.size, resolution, step), 1).pixels
        return _LoadedPicture(
            name=self.name,
            pixels=fitted[..., :3].contiguous(),
            mask=fitted[..., 3].contiguous(),
            masked=self.masked,
            caption=self.caption,
            captioned=self.captioned,
            problems=self.problems,
        )


def _load(file: Path, mask_file: Path | None, text: Path | None, default: str) -> _LoadedPicture:
    picture = read_picture(file)
    problems = [f"{file.name} {note}" for note in picture.notes]
    mask = picture.alpha
    if mask_file is not None:
        mask = read_mask(mask_file, picture)
    caption = None
    if text is not None:
        caption, notes = read_caption_file(text)
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
    return _LoadedPicture(
        name=file.name,
        pixels=picture.pixels,
        mask=mask,
        masked=not whole,
        caption=caption or default,
        captioned=captioned,
        problems=problems,
    )


def _crop_warnings(whole: _LoadedPicture, fitted: _LoadedPicture) -> Iterator[str]:
    kept = kept_fraction(whole.size, fitted.size)
    if kept < 1 - _MAX_CROPPED:
        width, height = whole.size[1], whole.size[0]
        yield f"{whole.name} ({width} x {height}) is cut to {kept:.0%} of itself; crop it yourself"


def _report(folder: str, loaded: Sequence[_LoadedPicture], problems: Sequence[str]) -> str:
    own = sum(one.captioned for one in loaded)
    masked = sum(one.masked for one in loaded)
    lines = [
        f"{len(loaded)} pictures from {folder}: {size_summary(one.size for one in loaded)}",
        f"{own} captions from text files, {len(loaded) - own} by default; {masked} masks",
        *problems,
    ]
    return "\n".join(lines)


def _files(folder: Path) -> list[Path]:
    """Return the files directly in a folder in natural order.

    Raises:
        ValueError: A file is a link that leads out of input.
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
    return sorted(files, key=lambda file: natural_sort_key(file.name))


def natural_sort_key(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers in names by value (2 before 10) and ignores case."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURE_ENDINGS


def _is_mask(file: Path) -> bool:
    return Path(file.stem).suffix.lower() == _MASK_ENDING
