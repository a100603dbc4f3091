"""What a finished pair run says of itself: metadata of its LoRAs and the text on the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...training import LoraState, Trained, lora_state
from ...training.recipes.pair import STYLE, content_name
from ...training.run_store import StoredRun
from ..bridge.output_folder import as_metadata
from ..trainer.report import shared_metadata, values_line, warnings
from .plan import PairPlan, PairRequest


def content_file(pair: int) -> str:
    """Return the name of a pair's content LoRA in the run's folder."""
    return f"content_{pair + 1}"


def pair_loras(
    request: PairRequest,
    plan: PairPlan,
    trained: Trained,
    facts: Mapping[str, Any],
    identity: str,
) -> dict[str, LoraState]:
    """Return the style and the content LoRAs by file name, with their metadata."""
    shared = {
        **shared_metadata(
            *("pair", request, plan.family, plan.config),
            *(plan.resolution, trained.steps, identity),
        ),
        "pastiche.style_words": plan.style_words,
        "pastiche.basis_seed": plan.family.pair.basis_seed,
        "pastiche.style_start_step": facts["style_start_step"],
        "pastiche.pairs": len(plan.pairs),
    }
    prompts = "\n".join(dict.fromkeys(plan.content_prompts))
    style = {**shared, "pastiche.role": "style", "pastiche.content_prompt": prompts}
    loras = {STYLE: lora_state(trained.adapters[STYLE], as_metadata(style))}
    for pair, prompt in enumerate(plan.content_prompts):
        content = {**shared, "pastiche.role": "content", "pastiche.content_prompt": prompt}
        layers = trained.adapters[content_name(pair)]
        loras[content_file(pair)] = lora_state(layers, as_metadata(content))
    return loras


def pair_text(request: PairRequest, plan: PairPlan, run: StoredRun, notes: Sequence[str]) -> str:
    """Return the lines that the node shows: values with the source of defaults, pictures, notes."""
    lines = [
        values_line(request, plan.family, plan.config, plan.family.pair.source, run.steps),
        f"{_style_start(run)}, mirrored: {request.settings.flip}",
        *(pair.note for pair in plan.pairs),
        *warnings(plan.family),
    ]
    return "\n".join([*lines, *notes])


def _style_start(run: StoredRun) -> str:
    """Return since when the style was learnt; a run that was stopped early has not begun to."""
    first = run.facts["style_start_step"] + 1
    if first > run.steps:
        return f"stopped at step {run.steps}, before the style begins at step {first}"
    return f"style from step {first} of {run.steps}"
