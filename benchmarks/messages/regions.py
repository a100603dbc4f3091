"""Collect the answers of the region nodes to bad input, with the cases of the tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from gated_loras import relative
from pack.nodes.regions.nodes_layout import Regions
from region_refusals import MISTAKES, WARNINGS, WRONG_MASKS, WRONG_PICTURES, from_colours
from regional_case import EXACT, LEFT, regional
from regional_control_case import STRENGTHS, covered, on_a_wide_mask, twice, weighted
from regional_refusals import (
    MODELS,
    NOTES,
    PROMPTS,
    REFUSED_SAMPLING,
    leave_no_room,
    on_left,
    sample,
    take_no_masks,
)
from tiny import tiny, tiny_controlnet

from .page import Page


def _make_regions(page: Page) -> None:
    page.add_section("Regions: the editor's text, written by hand")
    for case, (text, _) in MISTAKES.items():
        page.add_refusal(case, lambda text=text: Regions.execute(text, 512, 512))
    for layout in ("1,two,1", "high: 1,2", "1,,1"):
        page.add_refusal(
            f"layout `{layout}`", lambda layout=layout: Regions.execute("", 512, 512, layout)
        )
    page.add_section("Regions from Masks and Regions from Colours")
    for case, (action, _) in WRONG_MASKS.items():
        page.add_refusal(case, action)
    for case, (picture, options, _) in WRONG_PICTURES.items():
        page.add_refusal(
            case, lambda picture=picture, options=options: from_colours(picture, **options)
        )
    page.add_section("Regions that are taken, and what is said of them")
    for case, (action, note) in WARNINGS.items():
        page.add_warning(case, action, note)


def _region_prompts(page: Page) -> None:
    page.add_section("Region Prompt")
    for case, (action, _) in PROMPTS.items():
        page.add_refusal(case, action)
    page.add_section("Apply Regional Attention")
    for case, (action, _) in MODELS.items():
        page.add_refusal(case, action)
    page.add_section("The same: what is taken, and what is said of it")
    for case, (action, notes) in NOTES.items():
        page.add_warning(case, action, *notes)


def _sample_with_regions(page: Page) -> None:
    page.add_section("A sampler behind Apply Regional Attention")
    for case, (make, _, _) in REFUSED_SAMPLING.items():
        page.add_refusal(case, lambda make=make: sample(make()))
    with pytest.MonkeyPatch.context() as patch:
        model = on_left("flux")
        leave_no_room(patch)
        page.add_refusal("Flux's texts too long beside the picture", lambda: sample(model, "flux"))
    with pytest.MonkeyPatch.context() as patch:
        take_no_masks(patch)
        page.add_warning(
            "an attention backend without masks",
            lambda: sample(on_left("flux"), "flux"),
            "takes no masks",
        )
    _sample_without_prompt(page)


def _sample_without_prompt(page: Page) -> None:
    """Add whether a region without a prompt is drawn with the global prompt."""
    page.warnings.clear()
    found = sample(regional(tiny("sd15"), [LEFT]))
    same = relative(found, sample(tiny("sd15"))) < EXACT
    reported = (
        "; ".join(page.warnings) or "nothing: the global prompt holds there, as the node's page"
    )
    page.add_answer("a region without a prompt", f"{reported} has it", same and not page.warnings)


def _regional_control(page: Page) -> None:
    page.add_section("Regional Control Weight")
    control = tiny_controlnet()
    for case, (strengths, _) in STRENGTHS.items():
        page.add_refusal(case, lambda strengths=strengths: weighted(control, [LEFT], strengths))
    page.add_refusal("a mask of another size", lambda: on_a_wide_mask(control))
    page.add_refusal("strengths given twice", lambda: twice(control))
    case = "a strength in a region that another covers"
    page.add_warning(case, lambda: covered(control), "has no effect")


REGION_SECTIONS: tuple[Callable[[Page], None], ...] = (
    _make_regions,
    _region_prompts,
    _sample_with_regions,
    _regional_control,
)
