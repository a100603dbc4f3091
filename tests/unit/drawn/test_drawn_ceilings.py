"""A study refuses to score what the judge cannot read."""

import pytest
from drawn.ceilings import Ceilings, Question

TABLE = {
    "thing": {"fox": {"plain": 0.99, "mosaic": 0.6}},
    "style": {"pixel": {"sand": 1.0, "night": 0.96}, "oil": {"sand": 0.9, "night": 0.8}},
}


def test_what_is_read_well_is_scored() -> None:
    Ceilings(TABLE).require_scored([Question("thing", "fox"), Question("style", "pixel")])


@pytest.mark.parametrize(
    ("question", "named"),
    [
        (Question("thing", "fox", "mosaic"), "thing 'fox' in mosaic at 0.60"),
        (Question("style", "oil"), "style 'oil' in plain at 0.85"),
    ],
)
def test_what_is_read_badly_is_refused_by_name(question: Question, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Ceilings(TABLE).require_scored([Question("thing", "fox"), question])
