"""A run while it lasts: what is learnt, its optimiser and average, taken up and set down whole."""

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
from .recipes.rows import LearnsWords, Recipe
from .words import LearntWords, Words


@dataclass(frozen=True)
class Trained:
    """What a run has learnt.

    Args:
        adapters: Factors by adapter and site, fp32 on the CPU.
        losses: The curve ``loss`` of the weighted sum, and one curve by row name with a number for
            every step that had such a row.
        steps: Steps it took.
        embeddings: Of the learnt words by name, ``(..., dim)``, fp32 on the CPU.
    """

    adapters: Mapping[str, Mapping[str, LowRank]]
    losses: Mapping[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)


class Session:
    """Adapters, optimiser, average and curves of one run.

    Args:
        denoiser: The base model.
        sites: Where the adapters act.
        recipe: Names the adapters.
        config: Of the run.
        warn: Told, once and in a sentence, what the optimiser must leave out.

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
        said = recipe.words() if isinstance(recipe, LearnsWords) else Words()
        self.words = LearntWords(said, denoiser.device)
        self.parameters = dict(self._named_parameters())
        self.optimizer = make_optimizer(self.adapters.values(), config, warn, self.words)
        self.average = self._copies() if config.ema_decay else {}
        self.curves: dict[str, list[float]] = defaultdict(list)
        self.carried: dict[str, Tensor] = {}
        """Gradients that wait for the next update of their parts; outside a step there are none
        on the parameters."""
        self.step = 0
        self.whole = True
        """False where a step broke off that can't be taken back: such a state is not kept."""
        self._before: dict[str, tuple[Tensor, dict[str, Any]]] = {}

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
        """Return the parameters of the parts that an update moves; ``None`` is all."""
        if parts is None:
            return self.parameters
        return {
            name: value
            for name, value in self.parameters.items()
            if name.rpartition("/")[2] in parts
        }

    def take_carried(self) -> None:
        """Put the gradients that wait on the parameters: a step begins."""
        for name, gradient in self.carried.items():
            self.parameters[name].grad = gradient.clone()

    def update(self, moved: Mapping[str, nn.Parameter]) -> None:
        """Move these parameters by their gradients, which are gone then; the others keep theirs."""
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

    def remember(self, moved: Mapping[str, nn.Parameter]) -> None:
        """Copy what the coming update changes; ``take_back`` puts it in place again."""
        for name, parameter in moved.items():
            if parameter.grad is not None and name not in self._before:
                state = _copied(self.optimizer.state.get(parameter, {}))
                self._before[name] = (parameter.detach().clone(), state)

    def forget(self) -> None:
        """Drop the copies and keep the gradients that wait: the step is done."""
        self._before.clear()
        self.carried = {
            name: parameter.grad
            for name, parameter in self.parameters.items()
            if parameter.grad is not None
        }
        self._drop_gradients()

    def take_back(self) -> None:
        """Undo the updates of a step that broke off between two of them."""
        self._drop_gradients()
        with torch.no_grad():
            for name, (value, state) in self._before.items():
                parameter = self.parameters[name]
                parameter.copy_(value)
                self.optimizer.state.pop(parameter, None)
                if state:
                    self.optimizer.state[parameter] = state
        self._before.clear()

    def update_average(self) -> None:
        """Move the average towards what is learnt; early steps move it faster."""
        if self.average:
            decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, value in self.parameters.items():
                    self.average[name].lerp_(value, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average in the adapters' place inside the block, where there is one."""
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
        """Return what has been learnt so far: the average, where one is kept.

        Raises:
            RuntimeError: It is no longer made of finite numbers.
        """
        self._require_finite()
        with self.averaged():
            layers = {name: adapter.result() for name, adapter in self.adapters.items()}
            embeddings = self.words.result()
        curves = {name: list(values) for name, values in self.curves.items()}
        return Trained(layers, curves, self.step, embeddings)

    def checkpoint(self) -> Checkpoint:
        """Return all that the next step needs, copied to the CPU.

        Raises:
            RuntimeError: What is learnt is no longer made of finite numbers.
        """
        self._require_finite()
        tensors = {f"learnt/{name}": value for name, value in self.parameters.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors |= {f"carried/{name}": value for name, value in self.carried.items()}
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
        """Go on from a checkpoint of an equal run.

        Raises:
            ValueError: It holds other layers than this run trains.
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
        self.carried = {}
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
                    # The optimiser changes them, and tensors made in inference mode can't be.
                    states[numbers[id(parameter)]] = _copied(state)
                if (waiting := checkpoint.tensors.get(f"carried/{name}")) is not None:
                    self.carried[name] = waiting.to(parameter, copy=True)
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
