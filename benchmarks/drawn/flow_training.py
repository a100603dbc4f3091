"""Train base B's denoiser: rectified flow on latents, with Muon and AdamW.

``DenoiserStage`` holds the parts that base A's training shares.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .mmdit import ContextRows, MMDiT
from .muon import Muon
from .rows import Rows, padded
from .stages import Stage

EMA_EVERY = 4  # steps between updates of the averaged weights


@dataclass(frozen=True)
class FlowPlan:
    """Settings of base B's training.

    Attributes:
        steps: Total number of steps. The last ``decay_share`` of them lower the learning rates to a
            fiftieth, so that a training may be stopped at any step and finished by a resumed one
            with fewer steps.
        batch: Number of square rows per step; a step on wide canvases has half as many.
        wide_share: Share of the steps that train on wide canvases.
        empty_share: Share of the rows whose caption is empty, for guidance.
        level_mean: Mean of the logit of the noise levels; their standard deviation is 1.
        uniform_share: Share of the rows whose noise level is drawn uniformly instead.
        muon_rate: Peak learning rate of Muon.
        adam_rate: Peak learning rate of AdamW.
        warm_up: Number of steps over which the learning rates rise to their peaks.
        decay_share: Share of the steps over which the learning rates fall.
        ema: Decay per step of the averaged weights.
    """

    steps: int
    batch: int = 128
    wide_share: float = 0.3
    empty_share: float = 0.1
    level_mean: float = 0.3
    uniform_share: float = 0.15
    muon_rate: float = 0.01
    adam_rate: float = 6e-4
    warm_up: int = 100
    decay_share: float = 0.3
    ema: float = 0.9985

    def factor(self, step: int) -> float:
        """Return the factor on the peak learning rates at a step."""
        start = self.steps * (1 - self.decay_share)
        if step < start:
            return min(1.0, (step + 1) / self.warm_up)
        return 0.02 + 0.98 * (self.steps - step) / (self.steps - start)


class DenoiserStage(Stage):
    """Training of a denoiser on stored rows, with Muon, AdamW and averaged weights.

    Args:
        folder: Folder of checkpoint and result.
        name: Name of the stage.
        world: Hash of the world.
        rows: Latents and captions; None if the stage is only used for its weights.
        plan: Settings of the training.
        model: Denoiser with its initial weights.
        device: Device of the training.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        world: str,
        rows: Rows | None,
        plan: FlowPlan,
        model: nn.Module,
        device: str = "cpu",
    ) -> None:
        super().__init__(folder, name, world, plan.steps)
        self.rows, self.plan, self.device = rows, plan, device
        self.model = model.to(device)
        self.average = [p.detach().clone() for p in self.model.parameters()]
        matrices, split, others = [], {}, []
        for name, parameter in self.model.named_parameters():
            stacked = self.stacked_matrices(name, parameter)
            if stacked:
                matrices.append(parameter)
                split[id(parameter)] = stacked
            else:
                others.append(parameter)
        self.muon = Muon(matrices, plan.muon_rate, split=split)
        self.adam = torch.optim.AdamW(
            others, lr=plan.adam_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.others = others

    @abstractmethod
    def stacked_matrices(self, name: str, parameter: Tensor) -> int:
        """Return the number of stacked matrices that Muon updates in a parameter; 0 is AdamW."""

    @abstractmethod
    def loss(self, latents: Tensor, prompts: ContextRows, generator: torch.Generator) -> Tensor:
        """Return the loss of one batch; noise levels and noise come from ``generator``."""

    def state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
        }

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        with torch.no_grad():
            torch._foreach_copy_(self.average, state["average"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])

    def step(self, number: int) -> float:
        assert self.rows is not None
        plan, generator = self.plan, torch.Generator().manual_seed(number)
        wide = torch.rand(1, generator=generator).item() < plan.wide_share
        shape, batch = ("wide", plan.batch // 2) if wide else ("square", plan.batch)
        latents, texts = self.rows.draw(shape, batch, plan.empty_share, generator)
        prompts = padded([row for row, _ in texts], [length for _, length in texts])
        loss = self.loss(latents, prompts, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(self.others, 1.0)
        factor = plan.factor(number)
        for optimizer, peak in ((self.muon, plan.muon_rate), (self.adam, plan.adam_rate)):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        if (number + 1) % EMA_EVERY == 0:
            decay = min(plan.ema, (1 + number) / (10 + number)) ** EMA_EVERY
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - decay)
        return loss.item()

    def averaged(self) -> dict[str, Tensor]:
        """Return the averaged weights, which sampling uses."""
        names = [name for name, _ in self.model.named_parameters()]
        return dict(zip(names, (value.cpu() for value in self.average), strict=True))

    def finish(self) -> None:
        self.write_result(self.averaged())


class FlowStage(DenoiserStage):
    """Training of the flow-matching denoiser on stored rows.

    Args:
        folder: Folder of checkpoint and result.
        world: Hash of the world.
        rows: Latents and captions; None if the stage is only used for its weights.
        plan: Settings of the training.
        device: Device of the training.
    """

    def __init__(
        self, folder: Path, world: str, rows: Rows | None, plan: FlowPlan, device: str = "cpu"
    ) -> None:
        torch.manual_seed(0)
        super().__init__(folder, "base_b", world, rows, plan, MMDiT(), device)

    def stacked_matrices(self, name: str, parameter: Tensor) -> int:
        if parameter.ndim != 2 or "joint_blocks" not in name or "adaLN" in name:
            return 0
        return 3 if name.endswith("qkv.weight") else 1

    def _levels(self, batch: int, generator: torch.Generator) -> Tensor:
        logits = torch.randn(batch, generator=generator) + self.plan.level_mean
        uniform = torch.rand(batch, generator=generator)
        from_uniform = torch.rand(batch, generator=generator) < self.plan.uniform_share
        return torch.where(from_uniform, uniform, torch.sigmoid(logits))

    def loss(self, latents: Tensor, prompts: ContextRows, generator: torch.Generator) -> Tensor:
        t = self._levels(len(latents), generator)
        noise = torch.randn(latents.shape, generator=generator)
        level = t[:, None, None, None]
        x = (1 - level) * latents + level * noise
        velocity = self.model(x.to(self.device), t.to(self.device), prompts.to(self.device))
        return (velocity - (noise - latents).to(self.device)).square().mean()
