"""The three stages of a fusion, each on top of what the earlier ones gave.

Text encoder, then keys and values of cross-attention with the fused text encoder, then all other
layers while each concept is drawn with the fused ones and its own changes of the rest.

Reference: Gu et al. 2023, arXiv:2305.18292, section 3.2 and the released code.
# Differs from the paper: every concept counts alike, whatever the number of its rows, so that
# words with a row per layer don't drown ordinary LoRAs; and with ``own`` activations each concept
# is read and drawn with its own earlier stages, so that its statistics don't depend on the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import psutil
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...lora_ops import LowRank, span_basis
from ...training import Family
from ...training.files.lora_state import lora_state
from ...training.runs.fusion_store import FusionStore, MemberStatistics
from ..bridge.digests import content_digest
from ..text.layer_contexts import context_layers
from .activations import InputWatch
from .drawing import Drawing, draw_prompts, evaluations
from .layers import WIDEST, FusedLayer, Layout, Stage, context_index, watched
from .report import LayerResult, StageResult
from .solve import Solving, solve_from_grams, solve_from_rows
from .statistics import Member, Survey, collect
from .text import context_rows, count_readings, count_real, read_prompts, reading_prompts

FORMAT = 1
"""Of the statistics; counted up when what is counted, drawn or damped changes."""

Changes = dict[str, LowRank]
"""Fused changes by layer name."""


@dataclass(frozen=True)
class FusionBase:
    """What is fused into.

    Args:
        model: Without sampling-time patches.
        clip: Its text encoder.
        vae: Its VAE, for concepts with pictures; or None.
        family: Of the model.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE | None
    family: Family


@dataclass(frozen=True)
class Course:
    """How a fusion goes.

    Args:
        own: Whether each concept is read and drawn with its own earlier stages.
        drawing: How concepts are drawn.
        solving: How layers are solved.
        store: Folder of the base's statistics; None for nowhere.
        keep_grams: Whether a Gram is kept for each concept.
        writable: Whether new statistics are kept.
        scratch: A folder that goes when the fusion is done; None for memory.
    """

    own: bool
    drawing: Drawing
    solving: Solving
    store: Path | None
    keep_grams: bool
    writable: bool
    scratch: Path | None


@dataclass
class Outcome:
    """What the stages gave.

    Args:
        changes: Fused, by layer name.
        layers: What is to be said of each layer.
        stages: What is to be said of each stage.
        notes: Sentences for the report.
    """

    changes: Changes = field(default_factory=dict)
    layers: list[LayerResult] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Stages:
    """One fusion.

    Args:
        base: What is fused into.
        layout: The layers.
        members: The concepts.
        prior: Prompts on which the base shall stay as it is; None for none.
        course: How.
    """

    def __init__(
        self,
        base: FusionBase,
        layout: Layout,
        members: Sequence[Member],
        prior: Member | None,
        course: Course,
    ):
        self._base, self._layout, self._course = base, layout, course
        self._members, self._prior = members, prior
        self._all = [*members, *([prior] if prior else [])]
        self._outcome = Outcome()
        total = len(layout.layers) + sum(self._steps(member) for member in self._all)
        self._bar = comfy.utils.ProgressBar(total)
        self._device = comfy.model_management.get_torch_device()
        self._peak = 0

    def run(self) -> Outcome:
        """Return the fused changes of all stages."""
        text = self._from_grams("text", {}, self._read)
        cross = self._from_rows(text)
        self._from_grams("spatial", {**text, **cross}, self._draw)
        return self._outcome

    def _steps(self, member: Member) -> int:
        """Return how many steps of the progress bar a member takes."""
        concept, steps = member.concept, 0
        if self._layout.of_stage("text"):
            steps += count_readings(concept)
        if self._layout.of_stage("cross"):
            steps += len(reading_prompts(concept))
        if self._layout.of_stage("spatial"):
            steps += evaluations(concept, self._course.drawing)
        return steps

    def _on_step(self, steps: int = 1) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update(steps)
        self._peak = max(self._peak, memory_in_use(self._device))

    def _from_grams(
        self, stage: Stage, before: Changes, run: Callable[[Member, InputWatch, Changes], None]
    ) -> Changes:
        """Fuse a stage from the Grams of its inputs.

        Args:
            stage: Which.
            before: The fused changes of the earlier stages.
            run: Reads or draws a member while its inputs are watched.
        """
        layers = self._layout.of_stage(stage)
        if not layers:
            return {}
        spans = self._spans(layers)
        text, clip = stage == "text", self._base.clip
        drawing = self._course.drawing

        def calls(member: Member) -> int:
            return count_readings(member.concept) if text else evaluations(member.concept, drawing)

        survey = Survey(
            layers,
            lambda site: watched(self._base.model, clip, site),
            spans,
            (lambda member: count_real(clip, member.concept)) if text else None,
            calls,
            lambda member, watch: run(member, watch, before),
        )
        rests = [stage] if text else [stage, drawing, self._under("text", "cross")]
        started = self._begin()
        collected = collect(
            survey,
            self._all,
            self._open(stage, rests),
            shelf=self._shelf(stage),
            keep_grams=self._course.keep_grams,
            skipped=lambda member: self._on_step(calls(member)),
        )
        collecting = time.perf_counter() - started
        changes, results = solve_from_grams(
            layers, self._members, collected, spans, self._course.solving, self._on_step
        )
        self._outcome.notes += collected.notes
        self._finish(
            stage,
            changes,
            results,
            passes=collected.passes,
            found=collected.found,
            collecting=collecting,
            solving=time.perf_counter() - started - collecting,
            statistics=collected.held,
            in_span=sum(layer.site in spans for layer in layers),
        )
        return changes

    def _from_rows(self, text: Changes) -> Changes:
        """Fuse keys and values of cross-attention from the contexts they read."""
        layers = self._layout.of_stage("cross")
        if not layers:
            return {}
        store = self._open("cross", ["cross", self._under("text")])
        target = store if store is not None and store.writable else None
        count, started = context_layers(self._base.model), self._begin()
        rows: dict[str, list[Tensor]] = {}
        found = 0
        for member in self._all:
            kept = None if store is None else store.member(member.digest)
            if kept is not None and len(kept.rows) == count:
                rows[member.digest] = [kept.rows[str(layer)] for layer in range(count)]
                self._on_step(len(reading_prompts(member.concept)))
                found += 1
                continue
            _, clip = self._patched(*self._earlier(member, text))
            rows[member.digest] = context_rows(clip, member.concept, count, self._on_step)
            own = {str(layer): part for layer, part in enumerate(rows[member.digest])}
            if target is not None:
                try:
                    target.keep_member(member.digest, MemberStatistics(rows=own))
                except RuntimeError as error:
                    self._outcome.notes.append(f"the statistics are not kept: {error}")
                    target = None
        index = context_index(self._base.model)

        def of(member: Member) -> Callable[[FusedLayer], Tensor]:
            return lambda layer: rows[member.digest][_context_of(layer, index)]

        prior = None
        if self._prior is not None:
            root, its_rows = math.sqrt(self._prior.weight), of(self._prior)

            def prior(layer: FusedLayer) -> Tensor:
                return root * its_rows(layer)

        collecting = time.perf_counter() - started
        changes, results = solve_from_rows(
            layers,
            self._members,
            {member.digest: of(member) for member in self._members},
            prior,
            self._course.solving,
            self._on_step,
        )
        self._finish(
            "cross",
            changes,
            results,
            passes=len(self._all) - found,
            found=found,
            collecting=collecting,
            solving=time.perf_counter() - started - collecting,
            statistics=sum(4 * part.numel() for parts in rows.values() for part in parts),
            in_span=0,
        )
        return changes

    def _read(self, member: Member, watch: InputWatch, before: Changes) -> None:
        own = self._of_stage(member, "text")
        _, clip = self._patched(own, member.concept.strength)
        read_prompts(clip, member.concept, watch, self._on_step)

    def _draw(self, member: Member, watch: InputWatch, before: Changes) -> None:
        model, clip = self._patched(*self._earlier(member, before))
        own = self._of_stage(member, "spatial")
        model, clip = _with_changes(model, clip, own, member.concept.strength)
        base, drawing = self._base, self._course.drawing
        draw_prompts(
            model, clip, base.vae, base.family, member.concept, drawing, watch, self._on_step
        )

    def _earlier(self, member: Member, fused: Changes) -> tuple[Mapping[str, LowRank], float]:
        """Return the earlier stages' changes under which a member is run, and their strength."""
        if not self._course.own:
            return fused, 1.0
        own = {**self._of_stage(member, "text"), **self._of_stage(member, "cross")}
        return own, member.concept.strength

    def _of_stage(self, member: Member, stage: Stage) -> Changes:
        names = {layer.name for layer in self._layout.of_stage(stage)}
        return {name: one for name, one in member.factors.items() if name in names}

    def _patched(
        self, changes: Mapping[str, LowRank], strength: float
    ) -> tuple[ModelPatcher, comfy.sd.CLIP]:
        return _with_changes(self._base.model, self._base.clip, changes, strength)

    def _under(self, *stages: Stage) -> str:
        """Return a digest of the earlier stages that a stage's statistics rest on.

        Of what decides the fused changes, in place of their bytes: the order in which concepts are
        connected moves their last digits alone.
        """
        if self._course.own:
            return "own"
        solving = self._course.solving
        return content_digest(
            [
                sorted((member.digest, member.weight) for member in self._all),
                [solving.of(stage) for stage in stages],
                [solving.anchor, solving.rank, solving.energy],
            ]
        )

    def _shelf(self, stage: Stage) -> FusionStore | None:
        """Return where concepts' own statistics wait while nothing is kept; None for memory."""
        if self._course.scratch is None:
            return None
        try:
            return FusionStore(self._course.scratch / stage, "")
        except RuntimeError:
            return None

    def _open(self, stage: Stage, rests: Sequence[object]) -> FusionStore | None:
        if self._course.store is None:
            return None
        mode = "" if stage == "text" else (" own" if self._course.own else " paper")
        try:
            digest = content_digest([FORMAT, *rests])
            folder = self._course.store / f"{stage}{mode}"
            return FusionStore(folder, digest, writable=self._course.writable)
        except RuntimeError as error:
            self._outcome.notes.append(f"the statistics are not kept: {error}")
            return None

    def _spans(self, layers: Sequence[FusedLayer]) -> dict[str, Tensor]:
        """Return for sites that are too wide the rows that all concepts' factors span."""
        downs: dict[str, list[Tensor]] = {}
        ordered = sorted(self._members, key=lambda member: member.digest)  # however connected
        for layer in layers:
            if layer.width > WIDEST:
                found = downs.setdefault(layer.site, [])
                found += [m.factors[layer.name].down for m in ordered if layer.name in m.factors]
        return {site: span_basis(found) for site, found in downs.items()}

    def _begin(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._peak = memory_in_use(self._device)
        return time.perf_counter()

    def _finish(
        self, stage: Stage, changes: Changes, results: Sequence[LayerResult], **facts: float
    ) -> None:
        self._peak = max(self._peak, memory_in_use(self._device))
        self._outcome.changes |= changes
        self._outcome.layers += results
        self._outcome.stages.append(
            StageResult(stage=stage, layers=len(changes), peak=self._peak, **facts)
        )


def memory_in_use(device: torch.device) -> int:
    """Return the bytes that a graphics card's tensors took at most, or that the process takes.

    A card keeps its peak itself, since the last reset; the process is looked at now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _with_changes(
    model: ModelPatcher, clip: comfy.sd.CLIP, changes: Mapping[str, LowRank], strength: float
) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """Return the model and the CLIP with changes on them, as ComfyUI's Load LoRA puts them there."""
    if not changes or strength == 0:
        return model, clip
    lora = dict(lora_state(changes, {}))
    return comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)


def _context_of(layer: FusedLayer, index: Mapping[str, int]) -> int:
    return next(number for prefix, number in index.items() if layer.site.startswith(prefix))
