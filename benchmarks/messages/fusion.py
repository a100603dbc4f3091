"""Collect the answers of the fusion nodes to bad input, with the cases of the tests."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence

import pytest
from concept_for_fusion_refusals import (
    REFUSED_AGAIN,
    REFUSED_CONCEPTS,
    fuse_twice,
    prompts_without_trigger,
    run_concept_for_fusion,
)
from full_disk import leave_no_space
from fusion_inputs import queue_fusion, set_output_folder, two_concepts
from fusion_refusals import NOTES, REFUSED_INPUTS, REFUSED_SAMPLING, attempt
from pack.training.runs import fusion_store

from .page import Page

# Times and sizes, which differ between machines.
_MEASURED = re.compile(r", (solved in |statistics |peak )?[\d.]+ (s|MiB)\b")
_SMALL = 100_000  # bytes of a file that can still be written before the simulated disk is full


def _add_notes(page: Page, case: str, report: str, notes: Sequence[str]) -> None:
    """Add the first line of a report that has each note, without times and sizes."""
    lines = [_MEASURED.sub("", line) for line in report.split("\n")]
    found = [next((line for line in lines if note in line), "") for note in notes]
    page.add_answer(case, "; ".join(filter(None, found)), all(found))


def _concept_for_fusion(page: Page) -> None:
    wires = two_concepts()
    page.add_section("Concept for Fusion")
    for case, (inputs, _) in REFUSED_CONCEPTS.items():
        page.add_refusal(case, lambda inputs=inputs: run_concept_for_fusion(wires, inputs))
    page.add_warning(
        "trigger prompts without the words of the LoRA's file",
        lambda: prompts_without_trigger(wires),
        "has none of the words",
    )


def _gradient_fusion(page: Page) -> None:
    wires = two_concepts()
    page.add_section("Gradient Fusion")
    for case, (make, changes, _) in {**REFUSED_INPUTS, **REFUSED_SAMPLING}.items():
        page.add_refusal(case, lambda make=make, changes=changes: attempt(wires, make, changes))
    for case, (make, action, _) in REFUSED_AGAIN.items():
        out = queue_fusion(make(wires), steps=1).result
        page.add_refusal(case, lambda action=action, out=out: action(out))
    page.add_section("Gradient Fusion: what is taken, and what is said of it")
    for case, (make, changes, notes) in NOTES.items():
        _add_notes(page, case, attempt(wires, make, changes).result[4], notes)
    (again,), twice = fuse_twice(wires)
    _add_notes(page, "a fused file offered again", twice[4], [f"{again.name}: LoRA at strength"])


def _fusion_statistics(page: Page) -> None:
    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > _SMALL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def report() -> str:
        return queue_fusion(two_concepts(), steps=1, statistics="sums").result[4]

    page.add_section("Gradient Fusion: statistics that cannot be kept")
    set_output_folder(page.folder("fusions"))
    with pytest.MonkeyPatch.context() as patch:
        leave_no_space(patch)
        _add_notes(page, "a full disk", report(), ["new statistics are not kept"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion_store.os, "fsync", full)
        _add_notes(page, "a disk that fills up", report(), ["the statistics are not kept"])
    blocked = page.folder("no fusions")
    (blocked / "pastiche").write_text("")
    set_output_folder(blocked)
    _add_notes(page, "a read-only output folder", report(), ["the statistics are not kept"])


FUSION_SECTIONS: tuple[Callable[[Page], None], ...] = (
    _concept_for_fusion,
    _gradient_fusion,
    _fusion_statistics,
)
