"""Parts of the study, and the noise and prompts on which subjects are judged."""

from __future__ import annotations

PARTS = ("learning", "identity", "cost", "solvers", "wide", "real_width")
NOISE = 260_000  # every subject is judged on noise of its own
BASE_NOISE = 100  # in place of a subject's number
PROMPTS = 20
