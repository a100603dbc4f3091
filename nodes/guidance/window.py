"""When and how strongly a style acts: a part of the run, a scale and its keyframes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...lora_ops import Keyframes, parse_keyframes

PercentToSigma = Callable[[float], float]
"""A model_sampling's ``percent_to_sigma``: falls from the first step's sigma to 0."""


@dataclass(frozen=True)
class StyleWindow:
    """A style's scale over the run: nothing outside the window, keyframes times scale inside.

    Args:
        style_scale: The scale of equation 10.
        start_percent: The first styled step has ``sigma <= percent_to_sigma(start_percent)``, as
            ComfyUI reads the start of a conditioning.
        end_percent: The last styled step has ``sigma >= percent_to_sigma(end_percent)``.
        keyframes: Factors of the scale by percent.
    """

    style_scale: float
    start_percent: float
    end_percent: float
    keyframes: Keyframes

    def scale_at(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """Return the scale at a step, 0 where the style is not to be computed."""
        begins = float(percent_to_sigma(self.start_percent))
        ends = float(percent_to_sigma(self.end_percent))
        if self.style_scale == 0 or not ends <= sigma <= begins:
            return 0.0
        if not self.keyframes.keys:
            return self.style_scale
        return self.style_scale * self.keyframes.at(_percent_of(sigma, percent_to_sigma))


def style_window(
    style_scale: float, start_percent: float, end_percent: float, schedule: str
) -> StyleWindow:
    """Return the window that the node's inputs describe.

    Raises:
        ValueError: The window ends before it starts, or the schedule has a mistake.
    """
    if end_percent < start_percent:
        raise ValueError(
            "end_percent must not be smaller than start_percent, got "
            f"{end_percent:g} and {start_percent:g}; set style_scale to 0 for no style at all"
        )
    return StyleWindow(style_scale, start_percent, end_percent, parse_keyframes(schedule))


def _percent_of(sigma: float, percent_to_sigma: PercentToSigma) -> float:
    """Return the percent of the run at ``sigma``, by bisection: models give one direction only."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if float(percent_to_sigma(middle)) > sigma:
            low = middle
        else:
            high = middle
    return high
