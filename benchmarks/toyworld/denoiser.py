"""Training of the toy base's denoiser on stored latents and contexts, resumable at any step."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .unet import TinyUNet
from .world import EMPTY_SHARE, GENERIC_SHARE

EMA_EVERY = 5
WIDE_SHARE = 0.35  # of the steps; a wide batch holds half as many rows


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        steps: In all. The last ``decay_share`` of them lower the rate to a fiftieth, so that a
            run may be stopped at any step and finished by a resumed one with fewer steps.
    """

    steps: int
    batch: int = 20
    learning_rate: float = 5e-4
    warm_up: int = 250
    decay_share: float = 0.3
    ema: float = 0.998
    seed: int = 0
    save_seconds: float = 180.0

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        decay_start = self.steps * (1 - self.decay_share)
        if step < decay_start:
            return self.learning_rate * min(1.0, (step + 1) / self.warm_up)
        along = (step - decay_start) / max(1.0, self.steps - decay_start)
        return self.learning_rate * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * along)))


def alphas_cumprod() -> Tensor:
    """SD1.5's noise schedule: betas whose roots run evenly from 0.00085 to 0.012, 1,000 of them."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


class Rows:
    """The training rows; every draw is a function of (seed, step) alone."""

    def __init__(self, folder: Path, captions: dict[str, Tensor]) -> None:
        self.latents = torch.load(folder / "latents.pt", weights_only=True)
        self.contexts = torch.load(folder / "contexts.pt", weights_only=True)
        self.captions = captions

    def draw(self, plan: Plan, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, contexts, timesteps and noise of one step."""
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        wide = torch.rand(1, generator=generator).item() < WIDE_SHARE
        name, batch = ("wide", plan.batch // 2) if wide else ("square", plan.batch)
        chosen = torch.randint(len(self.latents[name]), (batch,), generator=generator)
        texts = self.captions[name][chosen]
        if not wide:
            generic = torch.rand(batch, generator=generator) < GENERIC_SHARE
            texts = torch.where(generic, self.captions["square_generic"][chosen], texts)
        empty = torch.rand(batch, generator=generator) < EMPTY_SHARE
        texts = torch.where(empty, 0, texts)
        # Shapes are decided in the middle of the schedule, where plain eps-MSE hardly looks.
        anywhere = torch.randint(0, 1000, (batch,), generator=generator)
        middle = torch.randint(200, 800, (batch,), generator=generator)
        t = torch.where(torch.rand(batch, generator=generator) < 0.3, anywhere, middle)
        latents = self.latents[name][chosen].float()
        return latents, self.contexts[texts], t, torch.randn(latents.shape, generator=generator)


class Trainer:
    """bf16 weights for the arithmetic, fp32 masters for AdamW, an EMA of the masters."""

    def __init__(self, plan: Plan, device: str) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.device, self.step = plan, device, 0
        self.model = TinyUNet().to(device, memory_format=torch.channels_last)
        self.masters = [p.detach().clone() for p in self.model.parameters()]
        self.average = [p.clone() for p in self.masters]
        self.model.to(torch.bfloat16)
        self.weights = list(self.model.parameters())
        for master in self.masters:
            master.requires_grad_(True)
            master.grad = torch.zeros_like(master)
        self.optimiser = torch.optim.AdamW(
            self.masters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.schedule = alphas_cumprod().to(device)
        self.forward = self.model

    def load(self, path: Path) -> None:
        """Take up a saved state."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step = state["step"]
        with torch.no_grad():
            torch._foreach_copy_(self.masters, state["masters"])
            torch._foreach_copy_(self.average, state["average"])
            torch._foreach_copy_(self.weights, state["masters"])
        self.optimiser.load_state_dict(state["optimiser"])

    def save(self, path: Path) -> None:
        """Write the whole state, by a rename, so that a reader never sees half a file."""
        names = [name for name, _ in self.model.named_parameters()]
        state = {
            "step": self.step,
            "names": names,
            "masters": [m.detach() for m in self.masters],
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def train_step(self, rows: Rows) -> float:
        """One step; returns the weighted loss."""
        drawn = [part.to(self.device) for part in rows.draw(self.plan, self.step)]
        latents, contexts, t, noise = drawn
        alpha = self.schedule[t].view(-1, 1, 1, 1)
        noised = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).bfloat16()
        noised = noised.contiguous(memory_format=torch.channels_last)
        weight = ((1 - alpha) / alpha).sqrt().clamp(0.3, 3.0)
        predicted = self.forward(noised, t, contexts).float()
        loss = (weight * (predicted - noise).pow(2)).mean()
        loss.backward()
        torch._foreach_copy_([m.grad for m in self.masters], [w.grad for w in self.weights])
        for w in self.weights:
            w.grad = None
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.plan.rate(self.step)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)
            if self.step % EMA_EVERY == 0:
                decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(self.average, self.masters, 1 - decay**EMA_EVERY)
        self.step += 1
        return loss.item()


def train_denoiser(
    folder: Path, captions: dict[str, Tensor], plan: Plan, *, device: str, resume: bool
) -> None:
    """Train until ``plan.steps`` or SIGTERM; the state lies in ``unet_training.pt``."""
    path = folder / "unet_training.pt"
    trainer, rows = Trainer(plan, device), Rows(folder, captions)
    if resume and path.exists():
        trainer.load(path)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    saved = began = time.time()
    losses: list[float] = []
    while trainer.step < plan.steps and not stopped:
        losses.append(trainer.train_step(rows))
        if trainer.step % 50 == 0:
            pace = (time.time() - began) / len(losses)
            recent = sum(losses[-50:]) / len(losses[-50:])
            logging.info("unet step %d loss %.4f, %.3f s a step", trainer.step, recent, pace)
        if time.time() - saved > plan.save_seconds:
            trainer.save(path)
            saved = time.time()
    trainer.save(path)
    logging.info("unet stopped at step %d", trainer.step)
