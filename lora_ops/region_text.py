"""Parse and write regions as text: the editor's JSON, and layouts such as ``1,2,1 / 1``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

from .regions import Box, Region

Path = tuple[str | int, ...]

_NUMBERS: dict[str, tuple[float, float]] = {  # numeric fields of a region with their bounds
    "x": (0.0, 1.0),
    "y": (0.0, 1.0),
    "width": (0.0, 1.0),
    "height": (0.0, 1.0),
    "feather": (0.0, 1.0),
    "weight": (0.0, 100.0),
    "blend": (0.0, 1.0),
    "start_percent": (0.0, 1.0),
    "end_percent": (0.0, 1.0),
}

_NEEDED = ("name", "x", "y", "width", "height")
_OPTIONAL = ("feather", "weight", "blend", "start_percent", "end_percent", "colour")
_EDITOR = "editor"  # key under which the editor stores its own settings

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\Z")
_SLACK = 1e-6  # sums of typed numbers may exceed the picture's border by this


def parse_regions(text: str) -> tuple[Region, ...]:
    """Return the regions of ``{"regions": [{"name": ..., "x": ..., ...}]}``; empty text has none.

    ``x``, ``y``, ``width`` and ``height`` are fractions of the picture, between 0 and 1. Spaces
    around a name are stripped.

    Raises:
        ValueError: The text has a mistake; the message gives its line and the reason.
    """
    if not text.strip():
        return ()
    try:
        read = json.loads(text)
    except json.JSONDecodeError as error:
        raise _mistake(
            error.lineno,
            f"the text must be valid JSON, got a mistake at column {error.colno} "
            f"({error.msg}); correct it there",
        ) from error
    lines = _lines(text)
    if not isinstance(read, dict) or (not read and "regions" not in read):
        raise _mistake(1, 'the text must be one object with "regions", got something else')
    unknown = [key for key in read if key not in ("regions", _EDITOR)]
    if unknown or "regions" not in read:
        line = lines.get((unknown[0],), 1) if unknown else 1
        raise _mistake(line, f'the object must have "regions" and nothing else, got {sorted(read)}')
    if not isinstance(read["regions"], list):
        raise _mistake(lines[("regions",)], '"regions" must be a list, got something else')
    regions: list[Region] = []
    for index, fields in enumerate(read["regions"]):
        region = _region(fields, index, lines)
        for other, earlier in enumerate(regions):
            if earlier.name == region.name:
                raise _mistake(
                    lines["regions", index],
                    f'the regions must have each name once, got "{region.name}" '
                    f"here and in line {lines['regions', other]}; rename one",
                )
        regions.append(region)
    return tuple(regions)


def regions_text(regions: Sequence[Region]) -> str:
    """Return the JSON of regions, one on each line; fields at their default are left out.

    Masks are not written: regions with masks come from pictures.
    """
    rows = []
    for region in regions:
        left, top, right, bottom = region.box
        fields: dict[str, Any] = {"name": region.name, "x": left, "y": top}
        fields |= {"width": _rounded(right - left), "height": _rounded(bottom - top)}
        plain = Region(region.name, region.box)
        for name in _OPTIONAL:
            if getattr(region, name) != getattr(plain, name):
                fields[name] = getattr(region, name)
        rows.append("    " + json.dumps(fields, ensure_ascii=False))
    inside = "\n" + ",\n".join(rows) + "\n  " if rows else ""
    return '{\n  "regions": [' + inside + "]\n}"


def parse_layout(text: str) -> tuple[Region, ...]:
    """Return the regions of a layout of rows and columns, left to right, then top to bottom.

    Their names are ``region 1``, ``region 2`` and so on.

    ``1,2,1 / 1`` is a row of three columns, the middle one twice as wide, above a row of one. Rows
    are equally high unless they begin with a height: ``3: 1,2,1 / 1: 1``. A new line starts a row,
    as a slash does. An empty text has no regions.

    Args:
        text: The layout.

    Raises:
        ValueError: A row is not made of positive numbers.
    """
    if not text.strip():
        return ()
    heights, columns = [], []
    for number, row in enumerate(re.split(r"[/\n]", text.strip()), 1):
        height, colon, widths = row.rpartition(":")
        heights.append(_positive(height) if colon else 1.0)
        if heights[-1] is None:
            raise ValueError(
                f"row {number} must begin with a positive height before its colon, "
                f'got "{height.strip()}"; write for example "3: 1,2,1 / 1: 1"'
            )
        columns.append([_positive(width) for width in widths.split(",")])
        if None in columns[-1]:
            raise ValueError(
                f"row {number} must be positive numbers with commas between them, "
                f'got "{widths.strip()}"; write for example "1,2,1 / 1"'
            )
    boxes = [
        Box(left, top, right, bottom)
        for (top, bottom), widths in zip(_edges(heights), columns, strict=True)
        for left, right in _edges(widths)
    ]
    return tuple(Region(f"region {i}", box) for i, box in enumerate(boxes, 1))


def _edges(sizes: Sequence[float | None]) -> list[tuple[float, float]]:
    """Return the two edges of each part; neighbours share an edge, and the last is exactly 1."""
    ends = list(accumulate(size or 0.0 for size in sizes))
    edges = [0.0, *(end / ends[-1] for end in ends[:-1]), 1.0]
    return list(pairwise(edges))


def _positive(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _region(fields: Any, index: int, lines: dict[Path, int]) -> Region:
    at = ("regions", index)
    if not isinstance(fields, dict):
        raise _mistake(
            lines[at],
            'a region must be written in braces, such as {"name": "cat", "x": 0, ...}, '
            "got something else",
        )
    name = fields.get("name")
    title = f'region "{name.strip()}"' if isinstance(name, str) else "a region"
    missing = [f'"{name}"' for name in _NEEDED if name not in fields]
    if missing:
        raise _mistake(lines[at], f"{title} must have a {', '.join(missing)}; add what is missing")
    if not isinstance(name, str) or not name.strip():
        raise _mistake(
            lines[(*at, "name")],
            f'a region\'s "name" must be a text that is not empty, got {json.dumps(name)}',
        )
    for key, value in fields.items():
        _check_field(key, value, title, lines[(*at, key)])
    given = {key: fields[key] for key in _OPTIONAL if key in fields}
    end, start = given.get("end_percent", 1.0), given.get("start_percent", 0.0)
    if end <= start:
        key = "end_percent" if "end_percent" in given else "start_percent"
        raise _mistake(
            lines[(*at, key)],
            f'"end_percent" of {title} must be above its "start_percent", '
            f"got {end:g} after {start:g}",
        )
    edges = []
    for low, size in (("x", "width"), ("y", "height")):
        edge = fields[low] + fields[size]
        if edge > 1.0 + _SLACK:
            raise _mistake(
                lines[(*at, low)],
                f"{title} must end inside the picture, got {low} {fields[low]:g} + {size} "
                f"{fields[size]:g}; both are shares of the picture and their sum is at most 1",
            )
        edges.append(min(1.0, _rounded(edge)))
    right, bottom = edges
    return Region(name.strip(), Box(fields["x"], fields["y"], right, bottom), **given)


def _check_field(key: str, value: Any, title: str, line: int) -> None:
    if key == "name":
        return
    if key == "colour":
        if not isinstance(value, str) or not _COLOUR.match(value):
            raise _mistake(
                line, f'"colour" of {title} must be written as #rrggbb, got {json.dumps(value)}'
            )
        return
    if key not in _NUMBERS:
        raise _mistake(
            line, f'{title} has no "{key}"; what it can have is {", ".join(_NEEDED + _OPTIONAL)}'
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mistake(line, f'"{key}" of {title} must be a number, got {json.dumps(value)}')
    low, high = _NUMBERS[key]
    if key in ("width", "height") and not low < value <= high:
        raise _mistake(
            line, f'"{key}" of {title} must be above 0 and at most 1, got {json.dumps(value)}'
        )
    if not low <= value <= high:
        raise _mistake(
            line,
            f'"{key}" of {title} must lie between {low:g} and {high:g}, got {json.dumps(value)}',
        )


def _lines(text: str) -> dict[Path, int]:
    """Return the line of every key and every list entry of a valid JSON text, by its path.

    Raises:
        ValueError: An object has a key twice, of which a JSON parser would keep only the last.
    """
    found: dict[Path, int] = {(): 1}
    tokens = [
        (match.group(), text.count("\n", 0, match.start()) + 1) for match in _TOKEN.finditer(text)
    ]
    _walk(iter(tokens), (), found)
    return found


def _walk(tokens: Iterator[tuple[str, int]], path: Path, found: dict[Path, int]) -> int:
    """Read one value, record the lines inside it, and return the line on which it begins."""
    token, first = next(tokens)
    if token == "{":
        for token, line in tokens:
            if token == "}":
                break
            if token == ",":
                continue
            key = json.loads(token)
            if (*path, key) in found:
                raise _mistake(line, f'"{key}" must be given once, got it twice; delete one')
            found[(*path, key)] = line
            next(tokens)  # the colon
            _walk(tokens, (*path, key), found)
    elif token == "[":
        _walk_list(tokens, path, found)
    return first


def _walk_list(tokens: Iterator[tuple[str, int]], path: Path, found: dict[Path, int]) -> None:
    index = 0
    for token, line in tokens:
        if token == "]":
            return
        if token == ",":
            continue
        found[(*path, index)] = line
        _walk(_with_first((token, line), tokens), (*path, index), found)
        index += 1


def _with_first(
    first: tuple[str, int], rest: Iterator[tuple[str, int]]
) -> Iterator[tuple[str, int]]:
    yield first
    yield from rest


def _rounded(number: float) -> float:
    """Return a sum or difference without its last digits, so that edges of neighbours are equal."""
    return round(number, 12)


def _mistake(line: int, sentence: str) -> ValueError:
    return ValueError(f"the regions, line {line}: {sentence}")
