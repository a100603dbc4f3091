"""Compute the content kept at a style rate from curves over strength, with bootstrap intervals."""

from __future__ import annotations

import numpy as np

TARGET_STYLE = 0.7  # style rate at which the content kept is compared
REPLICATES = 2000
Flags = np.ndarray  # bool ``(training, strength, picture, 2)``: style right, object right


def rates(flags: Flags) -> np.ndarray:
    """Return style and object rate by strength, ``(strength, 2)``."""
    return flags.mean(axis=(0, 2))


def content_at(curve: np.ndarray, style_rate: float) -> float:
    """Return the object rate where a curve ``(strength, 2)`` first reaches a style rate.

    It is interpolated linearly between neighbouring strengths, from the lowest strength on.
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
    """Return both arms' content kept at one style rate, and the 95 % interval of the difference.

    The style rate is 70 %, or the highest that both curves reach. The bootstrap resamples trainings
    and then pictures, with the same samples for both arms. A picture is a prompt with its noise.
    """
    shared = min(TARGET_STYLE, rates(ours)[:, 0].max(), rates(baseline)[:, 0].max())
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
