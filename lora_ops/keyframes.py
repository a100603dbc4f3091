"""Strength keyframes over the sampling run, written as ``0:1, 0.5:0.3``."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class Keyframes:
    """A factor over the sampling run: linear between keys, constant outside them.

    Args:
        keys: Pairs of a percent in 0..1, strictly increasing, and the factor at that percent.
    """

    keys: tuple[tuple[float, float], ...]

    def at(self, percent: float) -> float:
        """Return the factor at ``percent`` of the run; without keys it is 1."""
        if not self.keys:
            return 1.0
        percents = [key for key, _ in self.keys]
        right = bisect_right(percents, percent)
        if right == 0:
            return self.keys[0][1]
        if right == len(percents):
            return self.keys[-1][1]
        (p0, f0), (p1, f1) = self.keys[right - 1 : right + 1]
        return f0 + (f1 - f0) * (percent - p0) / (p1 - p0)


def parse_keyframes(text: str) -> Keyframes:
    """Return the keyframes written in ``text``; an empty text is a constant factor of 1.

    Raises:
        ValueError: A key is not ``percent:factor``, lies outside 0..1 or is not above the last one.
    """
    keys: list[tuple[float, float]] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        try:
            percent_text, factor_text = entry.split(":", 1)
            percent, factor = float(percent_text), float(factor_text)
        except ValueError:
            raise ValueError(
                f'a schedule must be written as "percent:factor, percent:factor", got "{entry}"; '
                'write for example "0:1, 0.5:0.3"'
            ) from None
        if not 0.0 <= percent <= 1.0:
            raise ValueError(
                f'the percents of a schedule must lie between 0 and 1, got "{entry}"; '
                "0 is the first step and 1 the last"
            )
        if factor != factor or factor in (float("inf"), float("-inf")):
            raise ValueError(f'the factors of a schedule must be finite numbers, got "{entry}"')
        if keys and percent <= keys[-1][0]:
            raise ValueError(
                f'the percents of a schedule must rise, got "{entry}" after {keys[-1][0]:g}; '
                "sort the keys and give each percent once"
            )
        keys.append((percent, factor))
    return Keyframes(tuple(keys))
