"""The only training loop of the pack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..lora_ops import LowRank
from .adapters import TrainedAdapter, new_adapter
from .config import TrainingConfig
from .denoiser import Denoiser
from .gates import GatedAdapters, Site
from .objective import output_errors
from .optim import make_optimizer
from .progress import Callback, Event
from .randomness import noise_for, share_for
from .recipes.rows import Recipe, Row


@dataclass(frozen=True)
class Trained:
    """What a run has learnt.

    Args:
        adapters: Factors by adapter and site, fp32 on the CPU.
        losses: The curve ``loss`` of the weighted sum, and one curve by row name with a number for
            every step that had such a row.
    """

    adapters: Mapping[str, Mapping[str, LowRank]]
    losses: Mapping[str, list[float]] = field(default_factory=dict)


def train(
    denoiser: Denoiser,
    sites: Mapping[str, Site],
    recipe: Recipe,
    config: TrainingConfig,
    callbacks: Sequence[Callback] = (),
) -> Trained:
    """Run the recipe's steps and return what its adapters have learnt.

    All of step n follows from (seed, n, sample), so the packing changes no draw. A callback that
    raises ends the run; the hooks are removed whatever ends it.

    Args:
        denoiser: The base model.
        sites: Where the adapters act.
        recipe: The rows of every step.
        config: Steps, rank, learning rate, seed, optimiser, packing.
        callbacks: Called with an ``Event`` after every step.

    Raises:
        ValueError: There is no site, or the rank doesn't fit one.
        RuntimeError: The loss is not a finite number.
    """
    if not sites:
        raise ValueError("training needs at least one layer, got none; choose other target layers")
    adapters = {
        name: new_adapter(name, kind, sites, config.rank, config.seed, denoiser.device)
        for name, kind in recipe.adapters().items()
    }
    gates = GatedAdapters(sites, adapters)
    optimizer = make_optimizer(_parameters(adapters.values()), config)
    curves: dict[str, list[float]] = defaultdict(list)
    with gates.attached():
        for step in range(config.steps):
            rows = recipe.rows(step, config.seed)
            updates = [rows] if config.packing == "batched" else [[row] for row in rows]
            totals: dict[str, list[float]] = defaultdict(list)
            loss = 0.0
            for update in updates:
                optimizer.zero_grad(set_to_none=True)
                for pack in _packs(denoiser, update):
                    errors = row_errors(denoiser, gates, pack, config.seed, step)
                    weights = errors.new_tensor([row.weight for row in pack])
                    weighted = (errors * weights).sum()
                    weighted.backward()
                    loss += weighted.item()
                    for row, error in zip(pack, errors.tolist(), strict=True):
                        totals[row.name].append(error)
                _require_finite(loss, step, config)
                optimizer.step()
            means = {name: sum(values) / len(values) for name, values in totals.items()}
            for name, value in {"loss": loss, **means}.items():
                curves[name].append(value)
            for callback in callbacks:
                callback(Event(step + 1, config.steps, loss, means))
    optimizer.zero_grad(set_to_none=True)
    return Trained({name: adapter.result() for name, adapter in adapters.items()}, dict(curves))


def row_errors(
    denoiser: Denoiser, gates: GatedAdapters, rows: Sequence[Row], seed: int, step: int
) -> Tensor:
    """Return each row's mean squared error in one forward, ``(row,)``, differentiable."""
    device = denoiser.device
    latent = torch.stack([row.example.latent for row in rows]).to(device)
    noise = torch.stack([noise_for(r.example.latent, seed, step, r.sample) for r in rows])
    share = torch.stack([share_for(seed, step, row.sample) for row in rows])
    sigma = denoiser.sigma_at(share.to(device))
    x = denoiser.noised(latent, noise.to(device), sigma)
    with gates.gated([row.gates for row in rows]):
        denoised = denoiser.denoise(x, sigma, [row.example.cond for row in rows])
    return output_errors(denoised, latent, denoiser.output_scale(sigma, latent))


def _packs(denoiser: Denoiser, rows: Sequence[Row]) -> Iterable[Sequence[Row]]:
    packs: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        packs[tuple(row.example.latent.shape), denoiser.pack_key(row.example)].append(row)
    return packs.values()


def _parameters(adapters: Iterable[TrainedAdapter]) -> list[torch.nn.Parameter]:
    return [parameter for adapter in adapters for parameter in adapter.parameters()]


def _require_finite(loss: float, step: int, config: TrainingConfig) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise RuntimeError(
            f"the loss must stay a finite number, got {loss} at step {step + 1}; lower the "
            f"learning rate (now {config.learning_rate:g}) or set precision to fp32 or bf16"
        )
