"""Schedule of a style's guidance scale: a part of the run, a scale and its keyframes."""

from __future__ import annotations

from dataclasses import dataclass

from ...lora_ops import Keyframes, parse_keyframes
from ..bridge.sampling import PercentToSigma


@dataclass(frozen=True)
class StyleWindow:
    """A style's scale over the run: 0 outside the window, scale times keyframes inside.

    Args:
        style_scale: Scale of equation 10.
        start_percent: Begin of the window. The first styled step has
            ``sigma <= percent_to_sigma(start_percent)``, as for the start of a conditioning.
        end_percent: End of the window. The last styled step has
            ``sigma >= percent_to_sigma(end_percent)``.
        keyframes: Factors of the scale by percent.
    """

    style_scale: float
    start_percent: float
    end_percent: float
    keyframes: Keyframes

    def scale_at(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """Return the scale at a step; 0 means that the style need not be computed."""
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
    """Return the window for the node's inputs.

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
    """Return the percent of the run at ``sigma``, by bisection, as models have no inverse."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if float(percent_to_sigma(middle)) > sigma:
            low = middle
        else:
            high = middle
    return high
