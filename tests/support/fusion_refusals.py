"""Inputs that Gradient Fusion refuses."""

from dataclasses import replace

import pytest
import torch
from concept_inputs import concept_for
from fusion_inputs import NAME, lora_to_fuse, plain_lora, queue_fusion
from pack.nodes.fusion.nodes import ConceptForFusion
from pack.training.files.lora_state import LoraState
from tiny import tiny, tiny_vae


def assert_refused(action, says):
    """Check that an action fails with one sentence that has all these parts."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is checked below
        action()
    text = str(error.value)
    assert "\n" not in text
    for part in says:
        assert part in text


def with_flux_lora(wires, says=True):
    lora = plain_lora(tiny("flux"), 3, text=False)
    return [wires[0], lora_to_fuse(lora if says else LoraState(lora, {}), name="fluxy")]


def with_narrow_lora(wires):
    misfit = {
        key: value[:, :-1] if "lora_down" in key else value
        for key, value in wires[1][0].lora.items()
    }
    return [wires[0], lora_to_fuse(LoraState(misfit, {}), name="narrow")]


def without_weight(wires):
    return [(replace(wire[0], weight=0.0),) for wire in wires]


def prompt_without_word(wires):
    prompts = "a photo of a dog"
    return [ConceptForFusion.execute(prompts, 1.0, 1.0, "", concept=wires[0])[0], wires[1]]


FIRST_LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_att"


def with_dora(wires):
    lora = dict(wires[1][0].lora)
    layer = next(key for key in lora if "lora_unet" in key).partition(".")[0]
    lora[f"{layer}.dora_scale"] = torch.ones(len(lora[f"{layer}.lora_up.weight"]), 1)
    return [wires[0], lora_to_fuse(LoraState(lora, {}))]


def shown(wires):
    return [wires[0], lora_to_fuse(wires[1][0].lora, images=torch.rand(1, 64, 64, 3))]


REFUSED_INPUTS = {
    "two concepts of one name": (
        lambda wires: [wires[0], (concept_for(tiny(NAME), "sks", seed=9),)],
        {},
        ["every concept must have a name of its own, got <sks> twice"],
    ),
    "a LoRA of another architecture": (
        with_flux_lora,
        {},
        ["'fluxy' must be made for this model, SD1.5", "made for Flux"],
    ),
    "one that doesn't say so": (
        lambda wires: with_flux_lora(wires, says=False),
        {},
        ["'fluxy': the LoRA must be made for this model, SD1.5"],
    ),
    "a LoRA of other shapes": (
        with_narrow_lora,
        {},
        ["'narrow': the LoRA must be made for this model", "shapes differ"],
    ),
    "weight 0 everywhere": (
        without_weight,
        {},
        ["at least one concept must have a weight above 0, got only zeros"],
    ),
    "no CLIP": (
        list,
        {"clip": None},
        ["a text encoder is needed to read the prompt, got none"],
    ),
    "no LoRA in any concept": (
        lambda wires: [(concept_for(tiny(NAME), name, lora=False),) for name in ("ada", "bob")],
        {},
        ["at least one concept must have a LoRA that changes this model"],
    ),
    "a trigger prompt without the concept's word": (
        prompt_without_word,
        {},
        ["the prompts of <sks> must name it, got 'a photo of a dog'"],
    ),
    "a trigger prompt with another concept's word": (
        lambda wires: [wires[0], lora_to_fuse(wires[1][0].lora, "a <sks> boat")],
        {},
        ["every <name> in the prompt must be a connected concept, got <sks>"],
    ),
    "a word in prior prompts": (
        list,
        {"prior_prompts": "a photo of <person>"},
        ["every <name> in the prompt must be a connected concept, got <person>"],
    ),
    "a DoRA": (with_dora, {}, ["got DoRA in 'boat'", FIRST_LAYER]),
    "pictures without a VAE": (shown, {}, ["the pictures of 'boat' need a VAE, got none"]),
    "pictures with another model's VAE": (
        shown,
        {"vae": lambda: tiny_vae(16)},
        ["for latents of 4 channels"],
    ),
    "a size that latents cannot hold": (
        list,
        {"size": 68},
        ["multiples of 8 pixels, got 68 x 68"],
    ),
}


def attempt(wires, make, changes):
    """Run the node on two concepts, as a case changes them."""
    inputs = {name: value() if callable(value) else value for name, value in changes.items()}
    return queue_fusion(make(wires), **inputs)


REFUSED_SAMPLING = {
    "numbers that are not finite in a layer": (
        lambda wires: [
            wires[0],
            lora_to_fuse(plain_lora(tiny(NAME), 2, text=False), strength=1e38),
        ],
        {"steps": 1},
        [
            "must be finite, got NaN",
            "of 'boat'",
            "layer 'diffusion_model.",
            "'a photo of a red boat'",
        ],
    ),
}


def disjoint_loras(wires):
    lora = wires[1][0].lora
    parts = {
        name: {key: value for key, value in lora.items() if word in key}
        for name, word in (("one", "attn1_to_v"), ("two", "attn1_to_q"))
    }
    return [lora_to_fuse(LoraState(part, {}), name=name) for name, part in parts.items()]


NOTES = {
    "one concept": (
        lambda wires: wires[:1],
        {},
        ["one concept needs no fusion; it is given back as it is"],
    ),
    "the same concept twice": (
        lambda wires: [wires[0], wires[0]],
        {},
        ["sks is connected twice and counts once, with both weights"],
    ),
    "a concept of weight 0": (
        lambda wires: [wires[0], without_weight(wires)[1]],
        {},
        ["boat has weight 0 and is left out"],
    ),
    "no common layer": (
        disjoint_loras,
        {"steps": 1},
        ["no layer is changed by more than one of the concepts"],
    ),
    "no damping on singular statistics": (
        list,
        {"damping": -1.0, "steps": 1},
        [
            "without damping a fused change may be much stronger",
            "layers with singular statistics solved by eigenvalues",
        ],
    ),
}
