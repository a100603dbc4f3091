"""GPU memory presets, and the check before step 1 that a run fits into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...training import TrainingConfig, TrainingSettings
from ...training.memory import MemoryNeed
from .memory_estimator import MemoryEstimator

_GB = 1024**3
_REFUSE_ABOVE = 1.3  # multiple of the free memory; the estimate is accurate to about 20 %


@dataclass(frozen=True)
class Preset:
    """A memory preset.

    Args:
        size: Memory of the card in bytes.
        checkpointing: Whether blocks are recomputed even for small bases.
        rows_per_pass: Maximum number of rows in one forward pass; 0 is no limit.
    """

    size: int
    checkpointing: bool
    rows_per_pass: int


# The sizes are estimates for SDXL in fp16, computing in bf16, a pair at 1024 pixels and rank 64.
PRESETS = {
    # 6.4 GB would leave too little free memory; with offloaded weights it is 1.6 GB.
    "8 GB": Preset(8 * _GB, checkpointing=True, rows_per_pass=1),
    # 6.9 GB with both rows in one pass.
    "12 GB": Preset(12 * _GB, checkpointing=True, rows_per_pass=2),
    # 20.0 GB without checkpointing, which is faster.
    "24 GB": Preset(24 * _GB, checkpointing=False, rows_per_pass=0),
}
# Fractions of the card's memory. Above the first, activations without checkpointing no longer fit;
# above the second, a step no longer fits together with the weights.
_LARGE_BASE = 0.3
_TOO_LARGE_BASE = 0.5


def with_preset(
    settings: TrainingSettings, config: TrainingConfig, model: ModelPatcher
) -> tuple[TrainingSettings, TrainingConfig]:
    """Return settings and configuration with the values of the memory preset.

    Offload implies checkpointing, because backward would otherwise keep every weight on the device.

    Args:
        settings: Training settings of the user.
        config: Configuration of the run.
        model: Base model, whose size decides about checkpointing and offload.
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
    estimator: MemoryEstimator,
    config: TrainingConfig,
    settings: TrainingSettings,
    report: Callable[[str], None],
) -> None:
    """Report the memory that the run needs and, if it does not fit, a setting that makes it fit.

    Args:
        estimator: Memory estimator of the run, whose base is not loaded yet.
        config: Configuration of the run.
        settings: Training settings with the values of the preset.
        report: Function that shows a sentence on the node.

    Raises:
        RuntimeError: The run needs clearly more memory than is free on the GPU.
    """
    model = estimator.base.model
    device = torch.device(model.load_device)
    try:
        need = estimator.estimate(config, settings)
    except Exception as error:  # the run may fit even if its memory can't be estimated
        logging.warning("Pastiche: the memory forecast failed", exc_info=True)
        report(f"memory: not foretold for this model ({type(error).__name__}: {error})")
        return
    needed, free = _needed(need, model), _free(device)
    report(_summary(need, free, device))
    if needed <= free:
        return
    remedy = _remedy(estimator, config, settings, free)
    if device.type != "cpu" and needed > _REFUSE_ABOVE * free:
        raise RuntimeError(
            f"training must fit into the {free / _GB:.1f} GB that are free on {device}, but needs "
            f"about {need.total / _GB:.1f} GB; {remedy}"
        )
    report(f"memory may run out: {remedy}")


def _summary(need: MemoryNeed, free: int, device: torch.device) -> str:
    parts = (
        f"base {need.weights / _GB:.1f}, what is learnt {need.learnt / _GB:.1f}, "
        f"a step {need.activations / _GB:.1f}"
    )
    return (
        f"memory: about {need.total / _GB:.1f} GB on {device} ({parts}); "
        f"{free / _GB:.1f} GB are free{' in addition to the base' if device.type == 'cpu' else ''}"
    )


def _needed(need: MemoryNeed, model: ModelPatcher) -> int:
    """Return the bytes that must be free; on a CPU the base is loaded already."""
    return need.total - (need.weights if torch.device(model.load_device).type == "cpu" else 0)


def _free(device: torch.device) -> int:
    """Return the free bytes on the device after all loaded models are unloaded, as for training."""
    # ComfyUI returns a pair only on request.
    free = cast(int, comfy.model_management.get_free_memory(device))
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
    estimator: MemoryEstimator, config: TrainingConfig, settings: TrainingSettings, free: int
) -> str:
    """Return advice for making the run fit, without a full stop."""
    model = estimator.base.model
    for names, changed, run in _savings(settings, config, model):
        need = estimator.estimate(run, changed)
        if _needed(need, model) <= free:
            return f"set {names} in Training Settings, then it needs {need.total / _GB:.1f} GB"
    return "lower resolution, rank or batch_size, close other programs, or take a smaller base"


def _savings(
    settings: TrainingSettings, config: TrainingConfig, model: ModelPatcher
) -> Iterator[tuple[str, TrainingSettings, TrainingConfig]]:
    """Yield advice, settings and configuration that need less and less memory, cumulatively."""
    # A preset would override these settings.
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
