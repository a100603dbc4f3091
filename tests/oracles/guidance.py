"""Style guidance the slow way: every prediction alone, on a network of its own, then equation 11.

Nothing of the pack takes part. A styled prediction is that of a model whose weights ComfyUI has
patched with the LoRA; the predictions of a step are combined as Jones et al. 2024
(arXiv:2405.01536) write them, and the step is Euler's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import comfy.samplers
import torch
from torch import Tensor

Predict = Mapping[str, Callable[[], Tensor]]
"""This step's predictions by name, computed when asked for."""
Combine = Callable[[Predict, float], Tensor]
ScaleAt = Callable[[float], "float | Tensor"]


class Alone(comfy.samplers.CFGGuider):
    """A guider that predicts one of its prompts and nothing else."""

    def __init__(self, model, positive, negative, predicts="positive"):
        super().__init__(model)
        self.set_conds(positive, negative)
        self.predicts = predicts

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        conds = [self.conds[self.predicts]]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[
            0
        ]


def equation_11(cfg_scale: float, styles: Mapping[str, ScaleAt]) -> Combine:
    """Combine "cond", "uncond" (not asked for at 1) and the styles by name."""

    def combine(predict: Predict, sigma: float) -> Tensor:
        cond = predict["cond"]()
        base = cond if cfg_scale == 1 else predict["uncond"]()
        base = base + cfg_scale * (cond - base)
        return base + _terms(predict, cond, styles, sigma)

    return combine


def on_top(styles: Mapping[str, ScaleAt]) -> Combine:
    """Add the styles' terms to "base", whatever guider that is."""
    return lambda predict, sigma: (
        predict["base"]() + _terms(predict, predict["cond"](), styles, sigma)
    )


def _terms(predict: Predict, cond: Tensor, styles: Mapping[str, ScaleAt], sigma: float) -> Tensor:
    total = torch.zeros_like(cond)
    for name, scale_at in styles.items():
        scale = scale_at(sigma)
        if isinstance(scale, Tensor) or scale != 0:
            total = total + scale * (predict[name]() - cond)
    return total


def in_window(scale: float | Tensor, model, start: float = 0.0, end: float = 1.0) -> ScaleAt:
    """Return the scale between the sigmas of two percents, 0 elsewhere."""
    sampling = model.get_model_object("model_sampling")
    first, last = (float(sampling.percent_to_sigma(percent)) for percent in (start, end))
    return lambda sigma: scale if last <= sigma <= first else 0.0


def sample_alone(
    guiders: Mapping[str, comfy.samplers.CFGGuider],
    combine: Combine,
    noise: Tensor,
    latent: Tensor,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the latent after Euler steps; the guiders are opened inside each other."""
    open_models: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    found: list[Tensor] = []

    def euler(x: Tensor) -> None:
        for now, after in itertools.pairwise(sigmas):
            sigma = now * x.new_ones([x.shape[0]])
            predict = {
                name: (lambda model=model, x=x, sigma=sigma: model(x, sigma))
                for name, model in open_models.items()
            }
            denoised = combine(predict, float(now))
            x = x + (x - denoised) / now * (after - now)
        found.append(x)

    def descend(names: list[str], x: Tensor | None = None) -> Tensor:
        if not names:
            euler(x)
            return found[0]

        def inside(model, x, sigmas, extra_args, callback, disable):
            open_models[names[0]] = lambda x, sigma: model(x, sigma, **extra_args)
            descend(names[1:], x)
            return found[0]

        sampler = comfy.samplers.KSAMPLER(inside)
        return guiders[names[0]].sample(
            noise, latent, sampler, sigmas, denoise_mask, disable_pbar=True, seed=seed
        )

    return descend(list(guiders))
