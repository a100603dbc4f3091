"""Compute and format confidence intervals of rates and of differences of rates."""

from __future__ import annotations

import math

import numpy as np


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of the rate ``right / count``."""
    if count == 0:
        return 0.0, 1.0
    z, p = 1.96, right / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def difference(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the first rate minus the second with a 95 % bootstrap interval.

    The bootstrap resamples trainings and then pictures, with the same samples for both arms. A
    picture is a prompt with its noise.

    Args:
        ours: Flags of one arm, ``(training, picture)``.
        theirs: Flags of the other arm, ``(training, picture)``.
        seed: Seed of the bootstrap's draws.
    """
    generator = np.random.default_rng(seed)
    trainings, count = ours.shape
    gap = ours.astype(float) - theirs.astype(float)
    gaps = []
    for _ in range(4000):
        runs = generator.integers(trainings, size=trainings)
        drawn = generator.integers(count, size=count)
        gaps.append(gap[runs][:, drawn].mean())
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(gap.mean()), float(low), float(high)


def rate_text(flags: np.ndarray) -> str:
    """Return the rate of the flags with its Wilson interval as a table cell."""
    low, high = wilson(int(flags.sum()), flags.size)
    return f"{flags.mean():.2f} ({low:.2f}–{high:.2f})"


def difference_text(values: tuple[float, float, float]) -> str:
    """Return a difference with its interval as a table cell."""
    middle, low, high = values
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
