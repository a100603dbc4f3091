"""The nodes for regions in short form, and samplers, for the tests of regions."""

from functools import cache

import torch
from gated_loras import random_lora
from pack.lora_ops import Box, Region
from pack.nodes.regions.layout.sets import KEEPS_A_CELL
from pack.nodes.regions.nodes_apply import ApplyRegionalAttention, RegionPrompt
from tiny import tiny, tiny_cond, tiny_latent

import nodes

STEPS, CFG, SEED = 2, 5.0, 11
EXACT = 1e-5  # relative error of the latent after two steps in fp32

WHOLE = Region("all", Box(0, 0, 1, 1))
LEFT, RIGHT = Region("left", Box(0, 0, 0.5, 1)), Region("right", Box(0.5, 0, 1, 1))


@cache
def cond(name, seed=0, tokens=12):
    """Return a CONDITIONING of random text features."""
    return tiny_cond(tiny(name), tokens, seed=seed)


@cache
def lora_of(name, seed=0, targets="attention"):
    """Return a random LoRA, strong enough that a lost gate shows."""
    lora = random_lora(tiny(name), targets, seed=1000 * seed)
    return {k: v * 4 if "lora_up" in k or "lora_B" in k else v for k, v in lora.items()}


def region_prompts(*prompts):
    """Return region prompts.

    Args:
        prompts: Name, positive and negative CONDITIONING of each region, and optionally a mapping of
            other inputs of the node.
    """
    found = None
    for name, positive, negative, *more in prompts:
        options = more[0] if more else {}
        found = RegionPrompt.execute(
            name,
            "",
            "",
            "",
            options.pop("strength", 1.0),
            found,
            positive_conditioning=positive,
            negative_conditioning=negative,
            **options,
        )[0]
    return found


def regional(model, regions, prompts=None, **more):
    """Return the model with Apply Regional Attention on it."""
    options = {
        "cells": KEEPS_A_CELL,
        "pooled": "mean by area",
        "isolate": False,
        "without_tokens": "by area",
        **more,
    }
    return ApplyRegionalAttention.execute(model, tuple(regions), prompts, **options)[0]


def latent_of(name, height=8, width=8, batch=1):
    """Return an empty latent of the tiny model."""
    return torch.zeros_like(tiny_latent(tiny(name), height, width, batch=batch)["samples"])


def ksample(model, positive, negative, latent, cfg=CFG, steps=STEPS, denoise=1.0, **options):
    """Return the latent of core's KSampler."""
    wire = {"samples": latent, **options}
    sampled = nodes.KSampler().sample(
        model, SEED, steps, cfg, "euler", "normal", positive, negative, wire, denoise
    )
    return sampled[0]["samples"]
