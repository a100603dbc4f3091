"""What every trainer's run goes through: found again, locked, gone on with, kept, stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...training import LoraState, Recipe, Trained, TrainingConfig, TrainingSettings, train
from ...training.gates import Site
from ...training.progress import Callback, Event
from ...training.runs.keeper import Keeper
from ...training.runs.run_folder import RunFolder, StartingPoint
from ...training.runs.run_store import StoredRun, checked_run_name, require_space, run_id, save_run
from ..bridge.families import identify
from ..bridge.output_folder import runs_root
from ..text.encoder_layers import TextTraining
from .denoiser import open_denoiser
from .memory import check_memory, with_preset
from .panel import LivePanel
from .preview import Previews, PreviewScene
from .progress_bar import Share, progress_bar
from .target_layers import trained_sites


@dataclass(frozen=True)
class Prepared:
    """What is encoded before the denoiser is loaded.

    Args:
        recipe: The rows of every step.
        preview: What preview pictures show; ``None`` where the trainer draws none.
    """

    recipe: Recipe
    preview: PreviewScene | None


@dataclass(frozen=True)
class TrainingJob:
    """What one trainer asks for.

    Args:
        name: Of the run, as the user typed it.
        node_id: Of the node in the graph; ``None`` outside a server.
        model: The base; never changed.
        config: Of the loop.
        settings: Of the user.
        pieces: What decides the result, by name; the number of steps is none of it.
        facts: Plain values decided now that stay when the run is extended.
        prepare: Encodes pictures and prompts; gets the facts. Called only if there is training
            to do, before the denoiser is loaded.
        loras: Makes the results by file name from what was learnt, the facts and the run's id.
        described: Plain values about the run for its folder.
        share: Of the node's progress bar; all of it where none is given.
        text: The text encoder, where captions are encoded in every step or it is trained too.
        denoiser_rate: What multiplies the learning rate of the denoiser's layers.
    """

    name: str
    node_id: str | None
    model: ModelPatcher
    config: TrainingConfig
    settings: TrainingSettings
    pieces: Mapping[str, Any]
    facts: Mapping[str, Any]
    prepare: Callable[[Mapping[str, Any]], Prepared]
    loras: Callable[[Trained, Mapping[str, Any], str], dict[str, LoraState]]
    described: Mapping[str, Any]
    share: Share | None = None
    text: TextTraining | None = None
    denoiser_rate: float = 1.0

    def sites(self, model: ModelPatcher, clip: CLIP | None) -> dict[str, Site]:
        """Return the layers that are trained: the denoiser's and the text encoder's.

        Args:
            model: The base, as it is loaded.
            clip: The text encoder, as it is loaded.
        """
        text = replace(self.text, clip=clip) if self.text and clip else None
        return trained_sites(model, self.settings, text, self.denoiser_rate)


@dataclass(frozen=True)
class Outcome:
    """A finished run and sentences for the node on where it comes from and lies."""

    run: StoredRun
    notes: Sequence[str]


def run_training(job: TrainingJob) -> Outcome:
    """Return the job's result: an equal run's, or what training, begun or gone on with, gives.

    Raises:
        RuntimeError: The folder is in use or can't be written, or the training broke off; the
            message names the last step that is kept.
    """
    config = job.config
    pieces = dict(job.pieces)
    if config.depends_on_total:
        pieces[f"steps of the {config.schedule} schedule"] = config.steps
    folder = RunFolder(runs_root(), checked_run_name(job.name), run_id(pieces))
    run = folder.finished(config.steps)
    if run is not None:
        return Outcome(run, [f"trained before, taken from {folder.result(run.steps)}"])
    with folder.held():
        start = folder.starting_point(config.steps, job.facts)
        if changed := folder.describe(pieces):
            start.notes.append(changed)
        started = time.monotonic()
        trained, notes = _train(job, folder, start)
        run = StoredRun(
            steps=trained.steps,
            pieces=pieces,
            losses={curve: list(values) for curve, values in trained.losses.items()},
            loras=job.loras(trained, start.facts, folder.identity),
            facts={
                **job.described,
                **start.facts,
                "seconds": round(time.monotonic() - started, 1),
            },
        )
        where = keep(folder, run, config.steps)
    return Outcome(run, [*notes, where])


def _train(
    job: TrainingJob, folder: RunFolder, start: StartingPoint
) -> tuple[Trained, Sequence[str]]:
    settings, config = with_preset(job.settings, job.config, job.model)
    require_space(runs_root(), _bytes_needed(job))
    panel = LivePanel(job.node_id, folder, job.config, start.checkpoint)
    keeper = Keeper(
        start.folder,
        settings.save_every_steps,
        settings.save_every_minutes,
        settings.keep_checkpoints,
        panel.warn,
        kept=start.checkpoint.step if start.checkpoint else None,
    )
    share = job.share or Share(0, config.steps)
    for note in start.notes:
        logging.info("Pastiche: %s", note)
    try:
        with panel.open():
            for note in start.notes:
                panel.note(note)
            prepared = job.prepare(start.facts)
            clip = job.text.clip if job.text else None
            check_memory(job.model, prepared.recipe, config, settings, panel.note, job.text)
            with open_denoiser(
                model=job.model,
                precision=settings.precision,
                checkpointing=settings.checkpointing,
                offload=settings.offload,
                clip=clip,
            ) as denoiser:
                text = denoiser.text.clip if denoiser.text else None
                sites = job.sites(denoiser.patcher, text)
                samplings = identify(job.model).samplings
                previews = Previews(prepared.preview, settings, folder.path, panel, samplings)
                saves = _save_now(job, folder, panel, keeper)
                # The bar comes after the pictures that it carries.
                bar = progress_bar(share, previews.latest)
                callbacks: list[Callback] = [keeper, previews, bar, saves, panel]
                trained = train(
                    denoiser,
                    sites,
                    prepared.recipe,
                    config,
                    callbacks,
                    start=start.checkpoint,
                    facts=start.facts,
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


def _bytes_needed(job: TrainingJob) -> int:
    """Return what the results and the kept checkpoints take on disk, generously counted."""
    settings = job.settings
    sites = job.sites(job.model, job.text.clip if job.text else None).values()
    numbers = sum(job.config.rank * (site.shape[0] + site.shape[1]) for site in sites)
    moments = 1 if settings.optimizer in ("Adafactor", "SGD", "Scaled SGD") else 2
    states = 1 + moments + bool(settings.ema_decay)
    return 4 * numbers * (1 + states * (settings.keep_checkpoints + 1))


def _save_now(job: TrainingJob, folder: RunFolder, panel: LivePanel, keeper: Keeper) -> Callback:
    """Return the callback that answers *Save now*: a checkpoint, and the LoRAs as files."""

    def save(event: Event) -> None:
        if not panel.asked("save"):
            return
        panel.doing("saving")
        session = event.session
        place = folder.path / "saved" / f"step {event.step}"
        try:
            keeper.keep_now()
            loras = job.loras(session.trained(), session.facts, folder.identity)
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
