"""Validate file names typed by users, so that they are safe on every system."""

from __future__ import annotations

from pathlib import PurePosixPath

_RESERVED_CHARACTERS = '<>:"|?*'
_RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL"} | {
    f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10)
}
_LONGEST = 200  # bytes; file systems allow 255, endings and counters are added


def relative_name(text: str, what: str = "the name") -> PurePosixPath:
    """Return a typed name as a path below some folder, ``subfolder/name``.

    Args:
        text: Typed name, with ``/`` or ``\\\\`` between its parts.
        what: Subject of the error message.

    Raises:
        ValueError: The name is absolute, leaves the folder, or is invalid on some system.
    """
    parts = text.strip().replace("\\", "/").split("/")
    fault = next((fault for fault in map(_fault, parts) if fault), None)
    if text.strip().startswith(("/", "\\")):
        fault = "an absolute path"
    elif text.strip()[1:2] == ":":
        fault = "a drive"
    if fault is not None:
        raise ValueError(
            f"{what} must be a plain name, or subfolder/name, got {text!r} with {fault}; "
            "choose another"
        )
    return PurePosixPath(*parts)


def _fault(part: str) -> str | None:
    if part in ("", ".", ".."):
        return "an empty part" if part == "" else f"{part!r}"
    if part != part.strip() or part.endswith("."):
        return "a space or dot at an end"
    if part.startswith("."):
        return "a leading dot"
    if any(character in _RESERVED_CHARACTERS or ord(character) < 32 for character in part):
        return f"one of {_RESERVED_CHARACTERS} or a control character"
    if part.split(".")[0].strip().upper() in _RESERVED_NAMES:
        return f"{part!r}, which Windows keeps for itself"
    if len(part.encode("utf-8", errors="replace")) > _LONGEST:
        return f"more than {_LONGEST} bytes"
    return None
