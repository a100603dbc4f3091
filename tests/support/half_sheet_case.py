"""Sheets of halves, and inputs that Half Sheet refuses."""

import torch
from half_inputs import clip_of
from pack.lora_ops import PartlyLearnable
from pack.lora_ops.parametrizations.partly_learnable import basis_digest
from pack.nodes.break_for_make.nodes_sheet import HalfSheet
from pack.nodes.bridge.drawing import Sampling
from pack.nodes.bridge.families import identify
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.half import HalfMetadata
from pack.training.files.lora_state import LoraState, lora_state
from pair_inputs import vae_for
from tiny import tiny, tiny_vae

WIDTH, HEIGHT = 64, 48
SAMPLING = Sampling(3, 5.0, "euler", "normal")


def half_of(name: str, role: str, token: str, seed: int = 0) -> LoraState:
    """Return a half of a tiny model; its learnt parts change pictures clearly."""
    model = tiny(name)
    shapes = {key: site.shape for key, site in training_sites(model, "attention").items()}
    kind = PartlyLearnable()
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for key, shape in shapes.items():
        parts = kind.init(shape, 4, generator, key)
        parts["up"] = torch.randn(parts["up"].shape, generator=generator) * 0.2
        parts["down"] = torch.randn(parts["down"].shape, generator=generator) * 0.1
        layers[key] = kind.factors(parts)
    metadata = HalfMetadata(role, basis_digest(shapes, 4, 0, "orthogonal"), token=token)
    architecture = {"modelspec.architecture": identify(model).architecture}
    return lora_state(layers, {**architecture, **metadata.as_metadata()})


def two_by_two(name: str) -> dict[str, list[LoraState]]:
    return {
        "contents": [
            half_of(name, "content", token, seed) for seed, token in ((1, "snq"), (2, ""))
        ],
        "styles": [half_of(name, "style", token, seed) for seed, token in ((3, "w@z"), (4, "kyb"))],
    }


def inputs(name: str = "sd3", **changes) -> dict[str, list]:
    """Return the inputs of the node as ComfyUI passes them, each as a list."""
    model = changes.get("model") or tiny(name)
    values = {
        "model": model,
        "clip": clip_of(name, model),
        "vae": vae_for(name),
        **(two_by_two(name) if "contents" not in changes or "styles" not in changes else {}),
        "prompt": "a photo in {style} style",
        "negative": "blurred",
        "content_strength": 1.0,
        "style_strength": 0.5,
        "seed": 7,
        "steps": SAMPLING.steps,
        "cfg": SAMPLING.cfg,
        "sampler_name": SAMPLING.sampler_name,
        "scheduler": SAMPLING.scheduler,
        "width": WIDTH,
        "height": HEIGHT,
        "labels": True,
        **changes,
    }
    return {key: value if isinstance(value, list) else [value] for key, value in values.items()}


def run_sheet(name: str = "sd3", **changes):
    """Run the node under inference mode, on a locked clone, as ComfyUI does."""
    with torch.inference_mode():
        return HalfSheet.PREPARE_CLASS_CLONE(None).execute(**inputs(name, **changes))


def halves(role: str, count: int = 1, name: str = "sd3") -> list[LoraState]:
    return [half_of(name, role, f"{role}{number}", number) for number in range(count)]


REFUSED = {
    "no contents": ({"contents": []}, "at least one content and one style half, got 0 and 2"),
    "no styles": ({"styles": []}, "at least one content and one style half, got 2 and 0"),
    "a style among the contents": (
        {"contents": lambda: halves("style")},
        "content must be a content half, got a style half",
    ),
    "an ordinary LoRA": (
        {"styles": lambda: [LoraState(dict(halves("style")[0]))]},
        "a half must come from Train Half or Load Half, got an ordinary LoRA",
    ),
    "another base": (
        {
            "contents": lambda: halves("content", 1, "flux"),
            "styles": lambda: halves("style", 1, "flux"),
        },
        "the LoRA must be made for this model, SD3, got one made for Flux",
    ),
    "a width between": (
        {"width": 72},
        "pictures of SD3 must have sides that are multiples of 16 pixels, got 72 x 48; "
        "set for example 64 x 48",
    ),
    "an unknown placeholder": (
        {"prompt": "a {contents}"},
        r"placeholders \{content\} and \{style\}, got '\{contents\}'; write one of these",
    ),
    "no token": (
        {"prompt": "a {content}"},
        r"asks for \{content\}, got a content half that has no token; write its word into "
        "content_words",
    ),
    "too many words": (
        {"style_words": "a\nb\nc"},
        "style_words must be one line for each of the 2 style halves, got 3",
    ),
    "two seeds": ({"seed": [1, 2]}, "seed must be a single value, got a list of 2"),
    "another VAE": (
        {"vae": lambda: tiny_vae(4)},
        "the VAE must be this model's, for latents of 16 channels, got one for 4",
    ),
    "no text encoder": ({"clip": [None]}, "a text encoder is needed to read the prompt, got none"),
}
