"""The run lifecycle shared by all trainers: reuse a finished run, lock, resume, save."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import comfy.model_management

from ...training import Trained, TrainingConfig, TrainingSettings, train
from ...training.gates import Layer
from ...training.progress import Callback, Event
from ...training.runs.keeper import Keeper
from ...training.runs.run_folder import RunFolder, StartingPoint
from ...training.runs.run_store import StoredRun, checked_run_name, require_space, run_id, save_run
from ..bridge.output_folder import runs_root
from .denoiser import open_denoiser
from .memory import check_memory, with_preset
from .memory_estimator import MemoryEstimator
from .panel import LivePanel
from .preview import Previews
from .progress_bar import ProgressRange, progress_bar
from .target_layers import sites_on
from .trainer import Trainer, TrainerOutput


def run_training(trainer: Trainer, progress: ProgressRange | None = None) -> TrainerOutput:
    """Return the output of an equal finished run, or else train, from a checkpoint if possible.

    Args:
        trainer: Training method with its inputs.
        progress: Part of the node's progress bar that the run fills; None is all of it.

    Raises:
        ValueError: An input is not valid.
        RuntimeError: The folder is in use or can't be written, or the training failed; the message
            names the last step that is saved.
    """
    trainer.check()
    config = trainer.config
    pieces = trainer.pieces()
    if config.depends_on_total:
        pieces[f"steps of the {config.schedule} schedule"] = config.steps
    folder = RunFolder(runs_root(), checked_run_name(trainer.run_name), run_id(pieces))
    run = folder.finished(config.steps)
    if run is not None:
        return _output(trainer, run, [f"trained before, taken from {folder.result(run.steps)}"])
    with folder.held():
        start = folder.starting_point(config.steps, trainer.choices_at_start)
        if changed := folder.describe(pieces):
            start.notes.append(changed)
        started = time.monotonic()
        trained, notes = _train(trainer, folder, start, progress or ProgressRange(0, config.steps))
        run = StoredRun(
            steps=trained.steps,
            pieces=pieces,
            losses={curve: list(values) for curve, values in trained.losses.items()},
            loras=trainer.results(trained, start.begun_for, folder.identity),
            facts={
                **trainer.details(),
                "begun_for": start.begun_for,
                "seconds": round(time.monotonic() - started, 1),
            },
        )
        stored = store_run(folder, run, config.steps)
    return _output(trainer, run, [*notes, stored])


def _output(trainer: Trainer, run: StoredRun, notes: Sequence[str]) -> TrainerOutput:
    text = "\n".join([*trainer.lines(run), *trainer.warnings(), *notes])
    return TrainerOutput(run.loras, dict(run.losses), trainer.pictures(), text)


def _train(
    trainer: Trainer, folder: RunFolder, start: StartingPoint, progress: ProgressRange
) -> tuple[Trained, Sequence[str]]:
    base, layers, clip = trainer.base, trainer.layers, trainer.text_encoder
    settings, config = with_preset(trainer.run_settings, trainer.config, base.model)
    require_space(runs_root(), _bytes_needed(layers, config, settings))
    panel = LivePanel(trainer.node_id, folder, config, start.checkpoint)
    keeper = Keeper(
        start.folder,
        settings.save_every_steps,
        settings.save_every_minutes,
        settings.keep_checkpoints,
        panel.warn,
        kept=start.checkpoint.step if start.checkpoint else None,
    )
    for note in start.notes:
        logging.info("Pastiche: %s", note)
    try:
        with panel.open():
            for note in start.notes:
                panel.note(note)
            recipe, scene = trainer.prepare(start.begun_for)
            check_memory(MemoryEstimator(base, layers, clip, recipe), config, settings, panel.note)
            with open_denoiser(
                base.model,
                settings.precision,
                settings.checkpointing,
                settings.offload,
                clip,
                base.family,
            ) as denoiser:
                text = denoiser.text.clip if denoiser.text else None
                previews = Previews(
                    scene, settings, folder.path, panel, trainer.base.family.samplings
                )
                saves = _save_now(trainer, start.begun_for, folder, panel, keeper)
                # The bar comes after the previews, because it sends their latest picture.
                bar = progress_bar(progress, previews.latest)
                callbacks: list[Callback] = [keeper, previews, bar, saves, panel]
                trained = train(
                    denoiser,
                    sites_on(layers, denoiser.patcher, text),
                    recipe,
                    config,
                    callbacks,
                    start=start.checkpoint,
                    warn=panel.note,
                )
            keeper.finish()
    except BaseException as error:  # the user's interrupt is not an Exception
        kept = keeper.rescue()
        if kept is not None:
            panel.warn(f"training broke off; {kept}")
        if not isinstance(error, Exception):
            raise
        ran_out = comfy.model_management.is_oom(error)
        if kept is None and not ran_out:
            raise
        reason = _out_of_memory(settings) if ran_out else str(error).rstrip(".")
        raise RuntimeError("; ".join(filter(None, (reason, kept)))) from error
    return trained, panel.notes


def _out_of_memory(settings: TrainingSettings) -> str:
    """Return the error message with advice, without a full stop."""
    advice = "lower rank, resolution or batch_size"
    if not settings.checkpointing:
        advice = "turn on checkpointing in Training Settings, or choose a memory preset"
    elif not settings.offload:
        advice = "turn on offload in Training Settings, or choose a smaller memory preset"
    return f"training must fit into the device's memory, but it ran out; {advice}"


def _bytes_needed(
    layers: Mapping[str, Layer], config: TrainingConfig, settings: TrainingSettings
) -> int:
    """Return an upper estimate of the disk space for results and checkpoints, in bytes."""
    numbers = sum(config.rank * (layer.shape[0] + layer.shape[1]) for layer in layers.values())
    moments = 1 if settings.optimizer in ("Adafactor", "SGD", "Scaled SGD") else 2
    states = 1 + moments + bool(settings.ema_decay)
    return 4 * numbers * (1 + states * (settings.keep_checkpoints + 1))


def _save_now(
    trainer: Trainer, begun_for: int, folder: RunFolder, panel: LivePanel, keeper: Keeper
) -> Callback:
    """Return the callback for *Save now*, which writes a checkpoint and the LoRAs as files."""

    def save(event: Event) -> None:
        if not panel.take_press("save"):
            return
        panel.show_activity("saving")
        place = folder.path / "saved" / f"step {event.step}"
        try:
            keeper.keep_now()
            loras = trainer.results(event.session.trained(), begun_for, folder.identity)
            save_run(place, StoredRun(event.step, {}, {}, loras, {}))
        except (OSError, RuntimeError) as error:
            panel.warn(f"step {event.step} is not saved: {error}")
        else:
            panel.note(f"saved step {event.step} in {place}")

    return save


def store_run(folder: RunFolder, run: StoredRun, requested: int) -> str:
    """Store a finished run and return a sentence with its path.

    If the result can't be written, for example because the disk is full, no error is raised, so
    that the training is not lost: the node still outputs the result, and the sentence says that it
    was not stored.

    Args:
        folder: Folder of the run.
        run: Result of the run.
        requested: Number of requested steps, which is larger than the run's if the user stopped it.
    """
    place = folder.result(run.steps)
    try:
        folder.store(run, requested)
    except (OSError, RuntimeError) as error:
        text = (
            f"trained, but not stored in {place}: {error}; "
            "save the LoRA now, or free some space and queue the same graph again"
        )
        logging.warning("Pastiche: %s", text)
        return text
    return f"stored in {place}"
