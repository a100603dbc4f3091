"""One training step with and without checkpointing."""

from dataclasses import dataclass, replace

import torch
from pack.lora_ops import Plain
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer.target_layers import training_sites
from pack.training.denoiser import Example
from pack.training.loop import take_step
from pack.training.recipes import Row
from pack.training.session import Session
from tiny import tiny_cond, tiny_latent
from training_case import CONFIG

PLAIN, CHECKPOINTED = {"checkpointing": False}, {"checkpointing": True}
OFFLOADED = {"offload": True}


@dataclass(frozen=True)
class FixedRows:
    """A recipe that has the same rows in every step.

    Args:
        fixed: Rows of every step.
    """

    fixed: tuple[Row, ...]

    def adapters(self):
        return {"lora": Plain()}

    def lr_scales(self):
        return {}

    def rows(self, step, seed):
        return self.fixed


def example(model, seed=0, height=8, width=8, tokens=8, dtype=torch.float32) -> Example:
    latent = training_latent(model, tiny_latent(model, height, width, seed=seed)["samples"])[0]
    cond = training_cond(model, tiny_cond(model, tokens, seed=seed), latent)
    return Example(latent.to(dtype), cond)


def step_gradient(denoiser, rows, **changes) -> torch.Tensor:
    """Return the gradient of one step of the loop over the rows, as one vector.

    No factor is zero, so that all of them get gradient.
    """
    sites = training_sites(denoiser.patcher, "attention")
    recipe = FixedRows(tuple(rows))
    session = Session(denoiser, sites, recipe, replace(CONFIG, **changes))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in session.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    found = []
    update = session.update

    def record_gradients(moved):  # before the update, which drops them
        found.extend(p.grad.flatten().double() for p in session.parameters.values())
        update(moved)

    session.update = record_gradients
    with session.gates.attached():
        take_step(session, recipe)
    return torch.cat(found).cpu()
