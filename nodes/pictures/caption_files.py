"""Read caption files in the usual text encodings."""

from __future__ import annotations

import codecs
from pathlib import Path

MAX_CAPTION_BYTES = 64 * 1024
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_caption_file(file: Path) -> tuple[str, list[str]]:
    """Return a caption without surrounding spaces, and notes if its encoding is not UTF-8.

    Raises:
        ValueError: The file is not text, or is too long for a caption.
    """
    size = file.stat().st_size
    if size > MAX_CAPTION_BYTES:
        raise ValueError(
            f"a caption must have at most {MAX_CAPTION_BYTES // 1024} KiB, got "
            f"{size // 1024} KiB in {file.name}; shorten it"
        )
    raw = file.read_bytes()
    if raw.startswith(_UTF16):
        try:
            return raw.decode("utf-16").strip(), ["is in UTF-16 and was read as such"]
        except UnicodeDecodeError as error:
            raise _no_text(file) from error
    if b"\0" in raw:
        raise _no_text(file)
    try:
        return raw.decode("utf-8-sig").strip(), []
    except UnicodeDecodeError:
        note = "is not in UTF-8 and was read as Windows-1252; save it as UTF-8"
        return raw.decode("cp1252", errors="replace").strip(), [note]


def _no_text(file: Path) -> ValueError:
    return ValueError(
        f"a caption must be a text file in UTF-8, got other bytes in {file.name}; "
        "save it as UTF-8 text"
    )
