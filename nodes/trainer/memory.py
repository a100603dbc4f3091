"""Presets for cards, and what a run needs of the device's memory, said before step 1."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...training import TrainingConfig, TrainingSettings
from ...training.memory import MemoryNeed
from .rehearsal import Rehearsal

_GB = 1024**3
# The forecast is right within a fifth; beyond this a run is bound to fail.
_HOPELESS = 1.3


@dataclass(frozen=True)
class Preset:
    """What a memory preset sets.

    Args:
        size: Of the card.
        checkpointing: Recompute blocks whatever the base.
        rows_per_pass: Rows in one forward; 0 is no limit.
    """

    size: int
    checkpointing: bool
    rows_per_pass: int


# Forecasts for SDXL in fp16, computing in bf16, a pair at 1024 pixels, rank 64.
PRESETS = {
    # 6.4 GB would be too near to what such a card has free; 1.6 GB with the weights elsewhere.
    "8 GB": Preset(8 * _GB, checkpointing=True, rows_per_pass=1),
    # 6.9 GB with both rows in one pass.
    "12 GB": Preset(12 * _GB, checkpointing=True, rows_per_pass=2),
    # 20.0 GB without recomputing, which is faster.
    "24 GB": Preset(24 * _GB, checkpointing=False, rows_per_pass=0),
}
_LARGE_BASE = 0.3  # of the card: what a step keeps grows with the base and outgrows what is left
_TOO_LARGE_BASE = 0.5  # of the card: what a step needs no longer fits beside the weights


def with_preset(
    settings: TrainingSettings, config: TrainingConfig, model: ModelPatcher
) -> tuple[TrainingSettings, TrainingConfig]:
    """Return settings and run with the memory preset's choices in their places.

    Offload implies checkpointing: backward would otherwise hold every weight on the device.

    Args:
        settings: Of the user.
        config: Of the loop.
        model: The base, whose size decides whether its weights may stay on the card.
    """
    if settings.memory in PRESETS:
        preset = PRESETS[settings.memory]
        share = model.model_size() / preset.size
        settings = replace(
            settings,
            checkpointing=preset.checkpointing or share > _LARGE_BASE,
            offload=share > _TOO_LARGE_BASE,
            rows_per_pass=preset.rows_per_pass,
        )
    settings = replace(settings, checkpointing=settings.checkpointing or settings.offload)
    return settings, replace(config, rows_per_pass=settings.rows_per_pass)


def check_memory(
    rehearsal: Rehearsal,
    config: TrainingConfig,
    settings: TrainingSettings,
    tell: Callable[[str], None],
) -> None:
    """Say what the run will need, what is free, and which setting would make it fit.

    Args:
        rehearsal: What is trained; not loaded yet.
        config: The run.
        settings: Settings with the preset in place.
        tell: Shows a sentence on the node.

    Raises:
        RuntimeError: The run can't fit onto a GPU by a clear margin.
    """
    model = rehearsal.base.model
    device = torch.device(model.load_device)
    try:
        need = rehearsal.need(config, settings)
    except Exception as error:  # a forecast that fails is no reason not to train
        logging.warning("Pastiche: the memory forecast failed", exc_info=True)
        tell(f"memory: not foretold for this model ({type(error).__name__}: {error})")
        return
    wanted, free = _wanted(need, model), _free(device)
    tell(_forecast(need, free, device))
    if wanted <= free:
        return
    remedy = _remedy(rehearsal, config, settings, free)
    if device.type != "cpu" and wanted > _HOPELESS * free:
        raise RuntimeError(
            f"training must fit into the {free / _GB:.1f} GB that are free on {device}, but needs "
            f"about {need.total / _GB:.1f} GB; {remedy}"
        )
    tell(f"memory may run out: {remedy}")


def _forecast(need: MemoryNeed, free: int, device: torch.device) -> str:
    parts = (
        f"base {need.weights / _GB:.1f}, what is learnt {need.learnt / _GB:.1f}, "
        f"a step {need.activations / _GB:.1f}"
    )
    return (
        f"memory: about {need.total / _GB:.1f} GB on {device} ({parts}); "
        f"{free / _GB:.1f} GB are free{' beside the base' if device.type == 'cpu' else ''}"
    )


def _wanted(need: MemoryNeed, model: ModelPatcher) -> int:
    """Return what has to be free: on a CPU the base is there already."""
    return need.total - (need.weights if torch.device(model.load_device).type == "cpu" else 0)


def _free(device: torch.device) -> int:
    """Return what is free on the device once other models have made way, as training has them."""
    free = comfy.model_management.get_free_memory(device)
    if device.type == "cpu":
        return int(free)
    loaded = comfy.model_management.current_loaded_models
    return int(
        free
        + sum(
            entry.model.loaded_size()
            for entry in loaded
            if entry.model is not None and torch.device(entry.device) == device
        )
    )


def _remedy(
    rehearsal: Rehearsal, config: TrainingConfig, settings: TrainingSettings, free: int
) -> str:
    """Return what to set so that the run fits, without a full stop."""
    model = rehearsal.base.model
    for names, changed, run in _savings(settings, config, model):
        need = rehearsal.need(run, changed)
        if _wanted(need, model) <= free:
            return f"set {names} in Training Settings, then it needs {need.total / _GB:.1f} GB"
    return "lower resolution, rank or batch_size, close other programs, or take a smaller base"


def _savings(
    settings: TrainingSettings, config: TrainingConfig, model: ModelPatcher
) -> Iterator[tuple[str, TrainingSettings, TrainingConfig]]:
    """Yield settings that need less and less, by what is to be set; each includes those before."""
    # A preset would overrule them.
    names = ["memory to as set"] if settings.memory in PRESETS else []
    if not settings.checkpointing:
        settings, names = replace(settings, checkpointing=True), [*names, "checkpointing on"]
        yield " and ".join(names), settings, config
    if config.rows_per_pass != 1:
        config, names = replace(config, rows_per_pass=1), [*names, "rows_per_pass to 1"]
        yield " and ".join(names), settings, config
    if not settings.offload and torch.device(model.load_device).type != "cpu":
        settings, names = replace(settings, offload=True), [*names, "offload on"]
        yield " and ".join(names), settings, config
