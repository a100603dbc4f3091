"""What a finished pair run says of itself: metadata of its LoRAs and the text on the node."""

from __future__ import annotations

from dataclasses import asdict

from ...training import LoraState, Trained, lora_state
from ...training.recipes.pair import STYLE, content_name
from .pair_plan import PairPlan, PairRequest
from .runs import as_metadata


def content_file(pair: int) -> str:
    """Return the name of a pair's content LoRA in the run's folder."""
    return f"content_{pair + 1}"


def pair_loras(
    request: PairRequest, plan: PairPlan, trained: Trained, identity: str
) -> dict[str, LoraState]:
    """Return the style and the content LoRAs by file name, with their metadata."""
    shared = {
        "modelspec.architecture": plan.family.architecture,
        "ss_base_model_version": plan.family.base_version,
        "pastiche.method": "pair",
        "pastiche.base_family": plan.family.name,
        "pastiche.run_id": identity,
        "pastiche.style_words": plan.style_words,
        "pastiche.steps": plan.config.steps,
        "pastiche.rank": plan.config.rank,
        "pastiche.learning_rate": plan.config.learning_rate,
        "pastiche.seed": plan.config.seed,
        "pastiche.basis_seed": plan.family.pair.basis_seed,
        "pastiche.style_start_step": plan.style_start_step,
        "pastiche.resolution": plan.resolution,
        "pastiche.flip": request.settings.flip,
        "pastiche.pairs": len(plan.pairs),
        "pastiche.base_patched": bool(request.model.patches),
        "pastiche.config": {**asdict(request.settings), **plan.config.as_json()},
    }
    prompts = "\n".join(dict.fromkeys(plan.content_prompts))
    style = {**shared, "pastiche.role": "style", "pastiche.content_prompt": prompts}
    loras = {STYLE: lora_state(trained.adapters[STYLE], as_metadata(style))}
    for pair, prompt in enumerate(plan.content_prompts):
        content = {**shared, "pastiche.role": "content", "pastiche.content_prompt": prompt}
        layers = trained.adapters[content_name(pair)]
        loras[content_file(pair)] = lora_state(layers, as_metadata(content))
    return loras


def pair_text(request: PairRequest, plan: PairPlan, where: str) -> str:
    """Return the lines that the node shows: values with the source of defaults, pictures, place."""
    config, source = plan.config, plan.family.pair.source

    def shown(label: str, value: str, given: float) -> str:
        return f"{label} {value}" if given else f"{label} {value} (default: {source})"

    values = (
        shown("steps", str(config.steps), request.steps),
        shown("rank", str(config.rank), request.rank),
        shown("learning rate", f"{config.learning_rate:g}", request.learning_rate),
    )
    lines = [
        f"{plan.family.name}: {', '.join(values)}",
        f"style from step {plan.style_start_step + 1} of {config.steps}, "
        f"mirrored: {request.settings.flip}",
        *(pair.note for pair in plan.pairs),
    ]
    if plan.family.distilled:
        lines.append("if this model is guidance-distilled, training it may lower its quality")
    return "\n".join([*lines, where])
