"""Inputs of the pair trainer on tiny models, and the node run as ComfyUI runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from pack.nodes.pair.nodes import TrainPair
from pack.nodes.pair.train import PairTrainer
from pack.nodes.trainer.request import read_request
from pack.training import TrainingSettings
from pack.training.runs.run_store import run_id
from tiny import tiny, tiny_clip, tiny_cond, tiny_vae
from torch import Tensor

LATENT_CHANNELS = {"sd15": 4, "sd21_v": 4, "sdxl": 4, "sdxl_v": 4, "flux2": 128}


def picture(height: int = 32, width: int = 48, seed: int = 0, channels: int = 3) -> Tensor:
    """Return an IMAGE of one random picture."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, height, width, channels, generator=generator)


def vae_for(name: str) -> Any:
    return tiny_vae(LATENT_CHANNELS.get(name, 16))


def pair_inputs(name: str = "sd3", **changes: Any) -> dict[str, list[Any]]:
    """Return the inputs of the node as ComfyUI passes them, each as a list."""
    values = {
        "model": tiny(name) if "model" not in changes else None,
        "clip": tiny_clip(),
        "vae": vae_for(name),
        "before": picture(seed=1),
        "after": picture(seed=2),
        "content_prompt": "a red ball",
        "style_words": "in ink",
        "steps": 3,
        "rank": 2,
        "learning_rate": 0.01,
        "seed": 5,
        "run_name": "test",
        "style_start": 0.3333,
        "packing": "batched",
        "settings": TrainingSettings(),
        **changes,
    }
    return {key: value if isinstance(value, list) else [value] for key, value in values.items()}


def queue(name: str = "sd3", **changes: Any) -> io.NodeOutput:
    """Run the node under inference mode, on a locked clone, as ComfyUI does."""
    inputs = pair_inputs(name, **changes)
    with torch.inference_mode():
        return TrainPair.PREPARE_CLASS_CLONE(None).execute(**inputs)


def new_trainer(name: str = "sd3", **changes: Any) -> PairTrainer:
    """Return the trainer that the node would run."""
    inputs = pair_inputs(name, **changes)
    return read_request(PairTrainer, inputs, inputs.pop("node_id", [None])[0])


def checked_trainer(name: str = "sd3", **changes: Any) -> PairTrainer:
    """Return the trainer with its inputs checked."""
    trainer = new_trainer(name, **changes)
    trainer.check()
    return trainer


def identity(name: str = "sd3", **changes: Any) -> str:
    """Return the id that the node would give the run."""
    return run_id(checked_trainer(name, **changes).pieces())


@contextmanager
def progress(
    on_step: Callable[[int, int], None] = lambda value, total: None,
) -> Iterator[list[int]]:
    """Yield the list of all values that reach ComfyUI's progress bar inside the block.

    ComfyUI's throttling, which skips updates within a tenth of a second, is off inside the block.
    """
    values: list[int] = []

    def hook(value: int, total: int, preview: Any, node_id: Any = None) -> None:
        values.append(value)
        on_step(value, total)

    before = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(hook)
    interval = comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL
    comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = 0.0
    try:
        yield values
    finally:
        comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = interval
        comfy.utils.set_progress_bar_global_hook(before)


class RandomFeatures:
    """A replacement for text encoders without a tiny form: random features, seeded by the prompt."""

    def __init__(self, model: ModelPatcher):
        self.model, self.patcher = model, tiny_clip().patcher
        self.layer_idx, self.tokenizer_options, self.use_clip_schedule = None, {}, False

    def tokenize(self, text: str) -> dict[str, list[int]]:
        return {"g": [ord(character) for character in text]}

    def encode_from_tokens_scheduled(self, tokens: dict[str, list[int]]) -> list[list[Any]]:
        return tiny_cond(self.model, seed=sum(tokens["g"]))
