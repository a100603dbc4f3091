"""Caption files: text of any usual encoding, and what was odd about it."""

from __future__ import annotations

import codecs
from pathlib import Path

LONGEST = 64 * 1024
"""Of a caption file in bytes."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_caption(file: Path) -> tuple[str, list[str]]:
    """Return a caption without outer spaces, and notes on a foreign encoding.

    Raises:
        ValueError: The file is no text, or too long for a caption.
    """
    size = file.stat().st_size
    if size > LONGEST:
        raise ValueError(
            f"a caption must have at most {LONGEST // 1024} KiB, got {size // 1024} KiB in "
            f"{file.name}; shorten it"
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
