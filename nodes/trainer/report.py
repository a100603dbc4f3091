"""What every finished run says of itself: metadata of its LoRAs and the first line on its node."""

from __future__ import annotations

from typing import Any

from ...training import Family, TrainingConfig
from .request import Asked


def shared_metadata(
    method: str,
    request: Asked,
    family: Family,
    config: TrainingConfig,
    resolution: int,
    steps: int,
    identity: str,
) -> dict[str, Any]:
    """Return what the LoRAs of every trainer carry.

    Args:
        method: Of the trainer.
        request: Its inputs.
        family: Of the base.
        config: Of the loop.
        resolution: Of the training pictures.
        steps: That the run took.
        identity: Of the run.
    """
    return {
        "modelspec.architecture": family.architecture,
        "ss_base_model_version": family.base_version,
        "pastiche.method": method,
        "pastiche.base_family": family.name,
        "pastiche.run_id": identity,
        "pastiche.steps": steps,
        "pastiche.rank": config.rank,
        "pastiche.learning_rate": config.learning_rate,
        "pastiche.seed": config.seed,
        "pastiche.resolution": resolution,
        "pastiche.flip": request.settings.flip,
        "pastiche.base_patched": bool(request.model.patches),
        "pastiche.config": {
            **request.settings.identity_fields(),
            **config.as_json(),
            "steps": steps,
        },
    }


def values_line(
    request: Asked, family: Family, config: TrainingConfig, source: str, steps: int
) -> str:
    """Return the line of values, with the source of those that are the family's defaults."""

    def shown(label: str, value: str, given: float) -> str:
        return f"{label} {value}" if given else f"{label} {value} (default: {source})"

    values = (
        shown("steps", str(steps), request.steps),
        shown("rank", str(config.rank), request.rank),
        shown("learning rate", f"{config.learning_rate:g}", request.learning_rate),
    )
    return f"{family.name}: {', '.join(values)}"


def warnings(family: Family) -> list[str]:
    """Return what a user must know of training on this family."""
    if family.distilled:
        return ["if this model is guidance-distilled, training it may lower its quality"]
    return []
