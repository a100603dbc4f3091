"""Shared parts of the style guidance tests: core's samplers, separate networks, row counts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import comfy.sample
import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from gated_loras import hook_count, patched, random_lora, relative
from guidance import Alone, equation_11, in_window, sample_alone
from pack.nodes.guidance.nodes import ApplyStyleGuidance
from tiny import tiny, tiny_cond, tiny_latent, weights_hash

import nodes

STEPS, CFG, SCALE, SEED = 4, 5.0, 3.0, 11
TOLERANCE = 1e-5  # relative error of the latent after four fp32 steps; measured 2e-7 to 2e-6


@cache
def network(name, role):
    """Return a model with the same weights in a separate network."""
    return tiny(name, fresh=True)


@cache
def lora_of(name, seed=0):
    """Return a random LoRA for a tiny model, strong enough that a lost gate shows."""
    lora = random_lora(tiny(name), seed=1000 * seed)
    return {key: value * 4 if is_up(key) else value for key, value in lora.items()}


def is_up(key):
    """Return whether a LoRA key holds the second factor."""
    return "lora_up" in key or "lora_B" in key


def agree(found, expected):
    """Check a latent against the oracle's, and log the relative error."""
    error = relative(found, expected)
    logging.info("relative error %.1e", error)
    assert error < TOLERANCE


def prompts(name, tokens=77):
    """Return positive, negative and style CONDITIONING of a tiny model."""
    return [tiny_cond(tiny(name), tokens, seed=seed) for seed in range(3)]


def styled(model, lora, style, scale=SCALE, start=0.2, end=1.0, strength=1.0, **more):
    """Return the model behind the node."""
    return ApplyStyleGuidance.execute(model, lora, style, scale, start, end, strength, **more)[0]


def sigmas_of(model, steps=STEPS):
    """Return KSampler's sigmas."""
    return comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "normal", steps
    )


def ksample(model, positive, negative, latent, cfg=CFG, **latent_options):
    """Return the latent of core's KSampler."""
    latent = {"samples": latent, **latent_options}
    sampled = nodes.KSampler().sample(
        model, SEED, STEPS, cfg, "euler", "normal", positive, negative, latent
    )
    return sampled[0]["samples"]


def sample_with(guider, model, latent):
    """Return the latent of core's SamplerCustomAdvanced."""
    sampler = comfy.samplers.sampler_object("euler")
    sampled = SamplerCustomAdvanced.execute(
        Noise_RandomNoise(SEED), guider, sampler, sigmas_of(model), {"samples": latent}
    )
    return sampled[0]["samples"]


def with_style_text(entry_source, text):
    """Return a positive prompt with the text of the style prompt in place of its own."""
    texts = text * len(entry_source) if len(text) == 1 else text
    result = []
    for (_, options), (cross_attn, own) in zip(entry_source, texts, strict=True):
        keys = {key: value for key, value in options.items() if key != "pooled_output"}
        if "pooled_output" in own:
            keys["pooled_output"] = own["pooled_output"]
        result.append([cross_attn, keys])
    return result


def expected(
    name,
    positive,
    negative,
    styles,
    latent,
    cfg=CFG,
    combine=None,
    base=None,
    upstream=None,
    noise_mask=None,
    factory=network,
):
    """Return the oracle's latent.

    Args:
        name: Name of the tiny model.
        positive: Positive CONDITIONING.
        negative: Negative CONDITIONING; None for a guider without one.
        styles: Triples of a LoRA, the style's full CONDITIONING and its scale (``ScaleAt``).
        latent: Initial latent.
        cfg: CFG scale.
        combine: Function that replaces equation 11 with CFG.
        base: Guider of the role "base", for other guidance than CFG.
        upstream: LoRA that is applied in every prediction.
        noise_mask: Inpainting mask.
        factory: Function that returns a separate network for a role.
    """

    def model(role):
        return patched(factory(name, role), upstream) if upstream else factory(name, role)

    guiders = {"cond": Alone(model("cond"), positive, negative or [])}
    if base is not None:
        guiders["base"] = base
    elif cfg != 1:
        guiders["uncond"] = Alone(model("uncond"), positive, negative, "negative")
    scales = {}
    for number, (lora, conditioning, scale_at) in enumerate(styles):
        role = f"style {number}"
        guiders[role] = Alone(patched(model(role), lora), conditioning, negative or [])
        scales[role] = scale_at
    return sample_alone(
        guiders,
        combine(scales) if combine else equation_11(cfg, scales),
        comfy.sample.prepare_noise(latent, SEED),
        latent,
        sigmas_of(tiny(name) if factory is network else factory(name, "cond")),
        noise_mask,
        SEED,
    )


def empty_latent(name, batch=1):
    """Return a latent of zeros, 8 x 8 pixels."""
    return torch.zeros_like(tiny_latent(tiny(name), 8, 8, batch=batch)["samples"])


def window(name, scale=SCALE, start=0.2, end=1.0):
    """Return the oracle's style scale as a function of sigma, for a window of the schedule."""
    return in_window(scale, tiny(name), start, end)


@contextmanager
def observed(model) -> Iterator[list[int]]:
    """Yield the number of rows of each forward.

    Check afterwards that no hook is left and that the weights are unchanged.
    """
    before = weights_hash(model)
    rows: list[int] = []
    handle = model.model.diffusion_model.register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[0])
    )
    try:
        yield rows
    finally:
        handle.remove()
        assert hook_count(model) == 0
        if model.backup:
            model.unpatch_model()
        assert weights_hash(model) == before
