"""The training loop that all trainers of the pack share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil

import torch
from torch import Tensor, nn

from .config import TrainingConfig
from .denoiser import Denoiser
from .files.checkpoint import Checkpoint
from .gates import GatedAdapters, Site
from .noise_levels import min_snr_weights, sample_timestep
from .objective import output_errors
from .optimizers.factor_optimizer import FactorOptimizer
from .progress import Callback, Event
from .randomness import noise_for, uniform
from .recipes.rows import Recipe, Row
from .schedule import scheduled_rate
from .session import Session, Trained
from .words import LearntWords


def train(
    denoiser: Denoiser,
    sites: Mapping[str, Site],
    recipe: Recipe,
    config: TrainingConfig,
    callbacks: Sequence[Callback] = (),
    *,
    start: Checkpoint | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Run the recipe's steps and return the trained adapters.

    The random numbers of step n depend only on (seed, n, sample). Packing therefore does not change
    them, and a run that is resumed from a checkpoint ends like an uninterrupted one. A callback
    that raises ends the run at once; a callback that returns true ends it as finished. The hooks
    are always removed.

    Args:
        denoiser: The base model.
        sites: Sites of the adapters, by name.
        recipe: Recipe that chooses the rows of every step.
        config: Configuration of the run.
        callbacks: Functions that are called with an ``Event`` after every step.
        start: Checkpoint of an equal run from which this run is resumed.
        warn: Function that receives warnings of the optimizer, each once and as a sentence.

    Raises:
        ValueError: There is no site, or the rank doesn't fit one.
        RuntimeError: The loss or the gradient is not a finite number.
    """
    session = Session(denoiser, sites, recipe, config, warn)
    if start is not None:
        session.restore(start)
    with session.gates.attached():
        while session.step < config.steps:
            losses = take_step(session, recipe)
            loss = losses["loss"]
            rows = {name: value for name, value in losses.items() if name != "loss"}
            event = Event(session.step, config.steps, loss, rows, session)
            if any([callback(event) for callback in callbacks]):
                break
    return session.trained()


def take_step(session: Session, recipe: Recipe) -> dict[str, float]:
    """Take one training step and return its losses by curve; the session stays consistent.

    Raises:
        RuntimeError: The loss or the gradient is not a finite number; the session is rolled back.
    """
    config, step = session.config, session.step
    rows = [_captioned(row, config, step) for row in recipe.rows(step, config.seed)]
    for group in session.optimizer.param_groups:
        group["lr"] = scheduled_rate(group["initial_lr"], step, config)
    errors: dict[str, list[float]] = defaultdict(list)
    loss = 0.0
    updates = updates_of(rows, config)
    try:
        session.restore_pending_gradients()
        for left, update in enumerate(updates, start=1 - len(updates)):
            for pack in packs(session.denoiser, update, config):
                loss += _backward(session, pack, errors)
            session.words.drop_stopped_gradients()
            moved = session.moved(update[0].moves)
            _require_finite(loss, session, "loss")
            _require_finite(_clip(session, moved.values()), session, "gradient")
            if left:
                session.snapshot(moved)
            else:
                session.consistent = False
            session.update(moved)
    except BaseException:  # a cancel must not leave a half-applied step either
        session.rollback()
        raise
    session.commit()
    losses = {name: sum(values) / len(values) for name, values in errors.items()}
    losses = {"loss": loss, **losses}
    for name, value in losses.items():
        session.curves[name].append(value)
    session.update_average()
    session.step, session.consistent = step + 1, True
    return losses


def updates_of(rows: Sequence[Row], config: TrainingConfig) -> list[list[Row]]:
    """Return the rows of every update of a step, in order."""
    if config.packing == "sequential":
        return [[row] for row in rows]
    groups: dict[frozenset[str] | None, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.moves].append(row)
    return list(groups.values())


def _backward(session: Session, pack: Sequence[Row], errors: dict[str, list[float]]) -> float:
    """Accumulate the gradient of a pack of rows and append the rows' errors to ``errors``."""
    # Backward runs inside the gates, because checkpointed blocks are recomputed with their rows.
    with session.gates.gated([row.gates for row in pack]):
        found = row_errors(
            denoiser=session.denoiser,
            gates=session.gates,
            rows=pack,
            config=session.config,
            step=session.step,
            words=session.words,
        )
        weights = found.new_tensor([row.weight for row in pack])
        weighted = (found * weights).sum()
        weighted.backward()
    for row, error in zip(pack, found.tolist(), strict=True):
        errors[row.name].append(error)
    return weighted.item()


def row_errors(
    denoiser: Denoiser,
    gates: GatedAdapters,
    rows: Sequence[Row],
    config: TrainingConfig,
    step: int,
    words: LearntWords | None = None,
) -> Tensor:
    """Return each row's differentiable mean squared error in one forward pass, ``(row,)``.

    If words are learnt with penalties, such as on their attention, the penalties are added.
    """
    device = denoiser.device
    words = words or LearntWords()
    latent = torch.stack([row.example.latent for row in rows]).to(device)
    noise = torch.stack(
        [
            noise_for(row.example.latent, config.seed, step, row.sample, config.noise_offset)
            for row in rows
        ]
    )
    share = torch.stack([sample_timestep(config, step, row.sample) for row in rows])
    sigma = denoiser.sigma_at(share.to(device))
    x = denoiser.noised(latent, noise.to(device), sigma)
    with gates.gated([row.gates for row in rows]):
        denoised = denoiser.denoise(
            x, sigma, [words.conditioning(row.example.cond) for row in rows]
        )
    counts = _counts(rows, latent, config.outside_mask)
    errors = output_errors(denoised, latent, denoiser.output_scale(sigma, latent), counts)
    if config.min_snr_gamma:
        errors = errors * min_snr_weights(denoiser, sigma, latent, config.min_snr_gamma)
    penalties = words.penalties(denoiser, [row.example.mask for row in rows])
    return errors if penalties is None else errors + penalties.to(errors)


def _counts(rows: Sequence[Row], latent: Tensor, outside: float) -> Tensor | None:
    """Return the weight of each latent cell, ``(row, 1, ...)``; None if all weights are equal."""
    masks = [row.example.mask for row in rows]
    if all(mask is None for mask in masks):
        return None
    everywhere = torch.ones(1, *latent.shape[2:])
    stacked = torch.stack([everywhere if mask is None else mask for mask in masks])
    return (outside + (1 - outside) * stacked).to(latent)


def _captioned(row: Row, config: TrainingConfig, step: int) -> Row:
    """Return the row, with the empty caption if caption dropout selects it.

    Raises:
        ValueError: The row's example has no empty caption.
    """
    if not config.caption_dropout:
        return row
    if row.example.uncond is None:
        raise ValueError(
            "caption_dropout needs the empty caption of every picture, got none; "
            "set caption_dropout to 0 or let the trainer encode the captions"
        )
    if uniform(config.seed, "caption", step, row.sample) >= config.caption_dropout:
        return row
    return replace(row, example=replace(row.example, cond=row.example.uncond))


def packs(
    denoiser: Denoiser, rows: Sequence[Row], config: TrainingConfig
) -> Iterable[Sequence[Row]]:
    """Yield the rows in groups that fit into one forward pass within the configured limits."""
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.example.latent.shape), denoiser.pack_key(row.example)].append(row)
    most = ceil(len(rows) / config.passes)
    most = min(most, config.rows_per_pass or most)
    for pack in groups.values():
        yield from (pack[first : first + most] for first in range(0, len(pack), most))


def _clip(session: Session, moved: Iterable[nn.Parameter]) -> float:
    """Clip the gradient to the configured norm and return its norm before clipping."""
    most = session.config.max_grad_norm or float("inf")
    if isinstance(session.optimizer, FactorOptimizer):
        most = float("inf")  # the optimizer clips in its own metric
    return torch.nn.utils.clip_grad_norm_(moved, most).item()


def _require_finite(value: float, session: Session, what: str) -> None:
    if not torch.isfinite(torch.tensor(value)):
        raise RuntimeError(
            f"the {what} must stay a finite number, got {value} at step {session.step + 1}; lower "
            f"the learning rate (now {session.config.learning_rate:g}) or set precision to fp32 "
            "or bf16"
        )
