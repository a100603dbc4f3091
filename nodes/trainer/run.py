"""The run that all trainers share: reuse a finished one, lock, resume, checkpoint, save."""

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
from .panel import LivePanel
from .preview import Previews
from .progress_bar import ProgressRange, progress_bar
from .rehearsal import Rehearsal
from .target_layers import sites_on
from .trainer import Trainer, TrainerOutput


def run_training(trainer: Trainer, progress: ProgressRange | None = None) -> TrainerOutput:
    """Return a trainer's output: an equal run's, or what training, begun or resumed, gives.

    Args:
        trainer: The method with its inputs.
        progress: The run's part of the node's progress bar; ``None`` is all of it.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
        RuntimeError: The folder is in use or can't be written, or the training broke off; the
            message names the last step that is kept.
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
        start = folder.starting_point(config.steps, trainer.decided_by)
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
                **trainer.described(),
                "begun_for": start.begun_for,
                "seconds": round(time.monotonic() - started, 1),
            },
        )
        where = keep(folder, run, config.steps)
    return _output(trainer, run, [*notes, where])


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
            check_memory(Rehearsal(base, layers, clip, recipe), config, settings, panel.note)
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
                # The bar comes after the pictures that it carries.
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
    except BaseException as error:  # the interrupt is no Exception
        kept = keeper.rescue()
        if kept is not None:
            panel.warn(f"training broke off; {kept}")
        if not isinstance(error, Exception):
            raise
        ran_out = comfy.model_management.is_oom(error)
        if kept is None and not ran_out:
            raise
        what = _out_of_memory(settings) if ran_out else str(error).rstrip(".")
        raise RuntimeError("; ".join(filter(None, (what, kept)))) from error
    return trained, panel.notes


def _out_of_memory(settings: TrainingSettings) -> str:
    """Return what to do about it in one sentence, without a full stop."""
    advice = "lower rank, resolution or batch_size"
    if not settings.checkpointing:
        advice = "turn on checkpointing in Training Settings, or choose a memory preset"
    elif not settings.offload:
        advice = "turn on offload in Training Settings, or choose a smaller memory preset"
    return f"training must fit into the device's memory, but it ran out; {advice}"


def _bytes_needed(
    layers: Mapping[str, Layer], config: TrainingConfig, settings: TrainingSettings
) -> int:
    """Return what the results and the kept checkpoints take on disk, generously counted."""
    numbers = sum(config.rank * (layer.shape[0] + layer.shape[1]) for layer in layers.values())
    moments = 1 if settings.optimizer in ("Adafactor", "SGD", "Scaled SGD") else 2
    states = 1 + moments + bool(settings.ema_decay)
    return 4 * numbers * (1 + states * (settings.keep_checkpoints + 1))


def _save_now(
    trainer: Trainer, begun_for: int, folder: RunFolder, panel: LivePanel, keeper: Keeper
) -> Callback:
    """Return the callback that answers *Save now*: a checkpoint, and the LoRAs as files."""

    def save(event: Event) -> None:
        if not panel.asked("save"):
            return
        panel.doing("saving")
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


def keep(folder: RunFolder, run: StoredRun, wished: int) -> str:
    """Store a finished run and return a sentence that says where it lies.

    A disk that fills up at the very end must not cost the training: the result travels on, and
    the sentence on the node says that it was not stored.

    Args:
        folder: Of the run.
        run: What was learnt.
        wished: Steps that were asked for; more than the run's where the user stopped it.
    """
    place = folder.result(run.steps)
    try:
        folder.store(run, wished)
    except (OSError, RuntimeError) as error:
        text = (
            f"trained, but not stored in {place}: {error}; "
            "save the LoRA now, or free some space and queue the same graph again"
        )
        logging.warning("Pastiche: %s", text)
        return text
    return f"stored in {place}"
