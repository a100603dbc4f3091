"""Define the parts of the study, and the noise seeds and prompts of the judged pictures."""

from __future__ import annotations

PARTS = ("learning", "identity", "cost", "solvers", "wide", "real_width")
NOISE = 260_000  # first noise seed; every subject is judged on different noise
BASE_NOISE = 100  # stands for the subject's index when the base itself is judged
PROMPTS = 20  # prompts of each subject
