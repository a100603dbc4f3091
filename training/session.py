"""The state of a run in progress: learnt parameters, optimizer, average, and their checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..lora_ops import LowRank
from .adapters import TrainedAdapter, new_adapter
from .config import TrainingConfig
from .denoiser import Denoiser
from .files.checkpoint import Checkpoint
from .gates import GatedAdapters, Site
from .optimizers.by_name import make_optimizer
from .recipes.rows import Recipe, WordRecipe
from .words import LearntWords, Words


@dataclass(frozen=True)
class Trained:
    """The result of a run.

    Args:
        adapters: Factors by adapter and site, fp32 on the CPU.
        losses: The curve ``loss`` of the weighted sum, and one curve by row name with a number for
            every step with such a row.
        steps: Number of steps taken.
        embeddings: Embeddings of the learnt words by name, ``(..., dim)``, fp32 on the CPU.
    """

    adapters: Mapping[str, Mapping[str, LowRank]]
    losses: Mapping[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)


class Session:
    """Adapters, optimizer, average and loss curves of one run.

    Args:
        denoiser: The base model.
        sites: Sites of the adapters, by name.
        recipe: Recipe that defines the adapters.
        config: Configuration of the run.
        warn: Function that receives warnings of the optimizer, each once and as a sentence.

    Raises:
        ValueError: There is no site, or the rank doesn't fit one.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sites: Mapping[str, Site],
        recipe: Recipe,
        config: TrainingConfig,
        warn: Callable[[str], None] = lambda text: None,
    ):
        if not sites:
            raise ValueError(
                "training needs at least one layer, got none; choose other target layers"
            )
        self.denoiser, self.config = denoiser, config
        lr_scales = recipe.lr_scales()
        self.adapters: dict[str, TrainedAdapter] = {
            name: new_adapter(
                name=name,
                parametrization=kind,
                sites=sites,
                rank=config.rank,
                seed=config.seed,
                device=denoiser.device,
                lr_scales=lr_scales.get(name),
            )
            for name, kind in recipe.adapters().items()
        }
        self.gates = GatedAdapters(sites, self.adapters)
        said = recipe.words() if isinstance(recipe, WordRecipe) else Words()
        self.words = LearntWords(said, denoiser.device)
        self.parameters = dict(self._named_parameters())
        self.optimizer = make_optimizer(self.adapters.values(), config, warn, self.words)
        self.average = self._copies() if config.ema_decay else {}
        self.curves: dict[str, list[float]] = defaultdict(list)
        # Gradients that are kept for the next update of their parts; between steps the parameters
        # themselves have none.
        self.pending_gradients: dict[str, Tensor] = {}
        self.step = 0
        self.consistent = (
            True  # False after a step that failed and can't be undone; never saved then
        )
        self._snapshots: dict[str, tuple[Tensor, dict[str, Any]]] = {}

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, adapter in self.adapters.items():
            for site, parts in adapter.parts.items():
                for part, tensor in parts.items():
                    if isinstance(tensor, nn.Parameter):
                        yield f"{name}/{site}/{part}", tensor
        for name, rows in self.words.parameters.items():
            yield f"embeddings/{name}", rows

    def _copies(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def moved(self, parts: frozenset[str] | None) -> dict[str, nn.Parameter]:
        """Return the parameters of the parts that an update changes; None is all parts."""
        if parts is None:
            return self.parameters
        return {
            name: value
            for name, value in self.parameters.items()
            if name.rpartition("/")[2] in parts
        }

    def restore_pending_gradients(self) -> None:
        """Restore pending gradients to the parameters, at the start of a step."""
        for name, gradient in self.pending_gradients.items():
            self.parameters[name].grad = gradient.clone()

    def update(self, moved: Mapping[str, nn.Parameter]) -> None:
        """Take an optimizer step for ``moved`` only; the other parameters keep their gradients."""
        waiting = {
            name: parameter.grad
            for name, parameter in self.parameters.items()
            if name not in moved and parameter.grad is not None
        }
        for name in waiting:
            self.parameters[name].grad = None
        self.optimizer.step()
        self._drop_gradients()
        for name, gradient in waiting.items():
            self.parameters[name].grad = gradient

    def _drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def snapshot(self, moved: Mapping[str, nn.Parameter]) -> None:
        """Copy the state that the next update changes; ``rollback`` restores it."""
        for name, parameter in moved.items():
            if parameter.grad is not None and name not in self._snapshots:
                state = _copied(self.optimizer.state.get(parameter, {}))
                self._snapshots[name] = (parameter.detach().clone(), state)

    def commit(self) -> None:
        """Drop the copies and keep the pending gradients, at the end of a step."""
        self._snapshots.clear()
        self.pending_gradients = {
            name: parameter.grad
            for name, parameter in self.parameters.items()
            if parameter.grad is not None
        }
        self._drop_gradients()

    def rollback(self) -> None:
        """Undo the updates of a step that failed between two of them."""
        self._drop_gradients()
        with torch.no_grad():
            for name, (value, state) in self._snapshots.items():
                parameter = self.parameters[name]
                parameter.copy_(value)
                self.optimizer.state.pop(parameter, None)
                if state:
                    self.optimizer.state[parameter] = state
        self._snapshots.clear()

    def update_average(self) -> None:
        """Update the moving average of the learnt parameters, with faster decay in early steps."""
        if self.average:
            decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, value in self.parameters.items():
                    self.average[name].lerp_(value, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Replace the learnt parameters by their average inside the block, if there is one."""
        learnt = self._copies() if self.average else {}
        with torch.no_grad():
            for name in learnt:
                self.parameters[name].copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in learnt.items():
                    self.parameters[name].copy_(value)

    def trained(self) -> Trained:
        """Return the present result: the average if there is one, else the learnt parameters.

        Raises:
            RuntimeError: The learnt parameters are not finite.
        """
        self._require_finite()
        with self.averaged():
            layers = {name: adapter.result() for name, adapter in self.adapters.items()}
            embeddings = self.words.result()
        curves = {name: list(values) for name, values in self.curves.items()}
        return Trained(layers, curves, self.step, embeddings)

    def checkpoint(self) -> Checkpoint:
        """Return the complete state for the next step, copied to the CPU.

        Raises:
            RuntimeError: The learnt parameters are not finite.
        """
        self._require_finite()
        tensors = {f"learnt/{name}": value for name, value in self.parameters.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors |= {f"carried/{name}": value for name, value in self.pending_gradients.items()}
        scalars: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            for entry, value in self.optimizer.state.get(parameter, {}).items():
                kept = tensors if isinstance(value, Tensor) else scalars
                kept[f"optimizer/{name}/{entry}"] = value
        copies = {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in tensors.items()
        }
        curves = {name: list(values) for name, values in self.curves.items()}
        return Checkpoint(self.step, copies, scalars, curves)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint of an equal run.

        Raises:
            ValueError: The checkpoint's layers are not those that this run trains.
        """
        learnt = {name for name in checkpoint.tensors if name.startswith("learnt/")}
        if learnt != {f"learnt/{name}" for name in self.parameters}:
            raise ValueError(
                f"a checkpoint must hold the {len(self.parameters)} tensors of this run, "
                f"got {len(learnt)} others; delete the run's checkpoints to train anew"
            )
        groups = self.optimizer.state_dict()["param_groups"]
        parameters = [part for group in self.optimizer.param_groups for part in group["params"]]
        numbers = {id(part): number for number, part in enumerate(parameters)}
        states: dict[int, dict[str, Any]] = {}
        self.pending_gradients = {}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoint.tensors[f"learnt/{name}"])
                if self.average:
                    self.average[name].copy_(checkpoint.tensors[f"average/{name}"])
                prefix = f"optimizer/{name}/"
                state = {
                    key.removeprefix(prefix): value
                    for source in (checkpoint.tensors, checkpoint.scalars)
                    for key, value in source.items()
                    if key.startswith(prefix)
                }
                if state:
                    # The optimizer changes them in place, which inference tensors don't allow.
                    states[numbers[id(parameter)]] = _copied(state)
                if (waiting := checkpoint.tensors.get(f"carried/{name}")) is not None:
                    self.pending_gradients[name] = waiting.to(parameter, copy=True)
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.curves = defaultdict(
            list, {name: list(values) for name, values in checkpoint.curves.items()}
        )
        self.step = checkpoint.step

    def _require_finite(self) -> None:
        values = (*self.parameters.values(), *self.average.values())
        if not all(bool(value.isfinite().all()) for value in values):
            raise RuntimeError(
                f"what is learnt must be finite numbers, got others after step {self.step}; lower "
                f"the learning rate (now {self.config.learning_rate:g})"
            )


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()
    }
