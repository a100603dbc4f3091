"""Content kept at a style rate, read off curves over strength, with bootstrap intervals."""

from __future__ import annotations

import numpy as np

WANTED_STYLE = 0.7
REPLICATES = 2000
Flags = np.ndarray
"""``(training, strength, picture, 2)`` of booleans: style right, object right."""


def rates(flags: Flags) -> np.ndarray:
    """Return style and object rate by strength, ``(strength, 2)``."""
    return flags.mean(axis=(0, 2))


def content_at(curve: np.ndarray, style_rate: float) -> float:
    """Return the object rate where a curve ``(strength, 2)`` first reaches a style rate.

    Linear between neighbouring strengths; the curve starts at the plain picture's side.
    """
    styles, objects = curve[:, 0], curve[:, 1]
    for right, style in enumerate(styles):
        if style >= style_rate:
            if right == 0 or style == styles[right - 1]:
                return float(objects[right])
            share = (style_rate - styles[right - 1]) / (style - styles[right - 1])
            return float(objects[right - 1] + share * (objects[right] - objects[right - 1]))
    raise ValueError(f"the curve must reach a style rate of {style_rate}, got {styles.max()}")


def compare(ours: Flags, baseline: Flags, seed: int = 0) -> dict[str, float]:
    """Return content kept by both arms at one style rate, and the difference's 95 % interval.

    The rate is 70 %, or the highest that both curves reach. The bootstrap draws trainings, then
    pictures, the same for both arms: a picture is a prompt and its noise.
    """
    shared = min(WANTED_STYLE, rates(ours)[:, 0].max(), rates(baseline)[:, 0].max())
    first, second = content_at(rates(ours), shared), content_at(rates(baseline), shared)
    generator = np.random.default_rng(seed)
    trainings, pictures = ours.shape[0], ours.shape[2]
    differences = []
    for _ in range(REPLICATES):
        runs = generator.integers(trainings, size=trainings)
        drawn = generator.integers(pictures, size=pictures)
        curves = [rates(arm[runs][:, :, drawn]) for arm in (ours, baseline)]
        reached = min(shared, curves[0][:, 0].max(), curves[1][:, 0].max())
        differences.append(content_at(curves[0], reached) - content_at(curves[1], reached))
    low, high = np.quantile(differences, [0.025, 0.975])
    return {
        "style_rate": float(shared),
        "ours": first,
        "baseline": second,
        "difference": first - second,
        "low": float(low),
        "high": float(high),
    }
