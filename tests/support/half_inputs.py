"""Inputs of the Break-for-Make nodes on tiny models, and the nodes run as ComfyUI runs them."""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from pack.nodes.break_for_make.nodes_all_stages import TrainB4M
from pack.nodes.break_for_make.nodes_train import Make, TrainHalf
from pack.training import LoraState, TrainingSettings
from pair_inputs import RandomFeatures, picture, vae_for
from tiny import restore_shared, tiny, tiny_clip


def clip_of(name: str, model: Any) -> Any:
    return RandomFeatures(model) if name in ("sd21_v", "sdxl", "wan21") else tiny_clip()


def _lists(values: dict[str, Any]) -> dict[str, list[Any]]:
    return {key: value if isinstance(value, list) else [value] for key, value in values.items()}


def half_inputs(name: str = "sd3", role: str = "content", **changes: Any) -> dict[str, list[Any]]:
    """Return the inputs of Train Half as ComfyUI passes them, each as a list."""
    model = changes.pop("model", None) or tiny(name, inference=True)
    token = {"content": "snq", "style": "w@z"}[role]
    values = {
        "model": model,
        "clip": clip_of(name, model),
        "vae": vae_for(name),
        "role": role,
        "images": [picture(seed=1), picture(seed=2)],
        "prompt": [f"a photo of {token} ball"],
        "token": token,
        "auxiliary_prompts": "",
        "steps": 3,
        "rank": 2,
        "learning_rate": 0.01,
        "seed": 5,
        "run_name": "test half",
        "partner_rate": 0.0,
        "gradients": "isolated",
        "start": "orthogonal",
        "content_owns": "down",
        "basis_seed": 0,
        "settings": TrainingSettings(),
    }
    return _lists({**values, **changes})


def make_inputs(contents: list, styles: list, **changes: Any) -> dict[str, list[Any]]:
    """Return the inputs of Make as ComfyUI passes them, each as a list."""
    values = {
        "contents": contents,
        "styles": styles,
        "content_strength": 1.0,
        "style_strength": 1.0,
        "steps": 0,
        "learning_rate": 0.01,
        "seed": 5,
        "run_name": "test make",
        "optimizer": "Scaled AdamW",
    }
    return _lists({**values, **changes})


def joint_inputs(name: str = "sd3", model: Any = None) -> dict[str, Any]:
    """Return the inputs of Make that joint training needs, except for the halves."""
    model = model or tiny(name, inference=True)
    return {
        "model": model,
        "clip": clip_of(name, model),
        "vae": vae_for(name),
        "content_images": [picture(seed=1)],
        "content_prompt": ["a photo of snq ball"],
        "style_images": [picture(seed=3)],
        "style_prompt": ["a ball in w@z style"],
        "steps": 3,
    }


def b4m_inputs(name: str = "sd3", **changes: Any) -> dict[str, list[Any]]:
    """Return the inputs of the node that runs all stages, each as a list."""
    model = changes.pop("model", None) or tiny(name, inference=True)
    values = {
        "model": model,
        "clip": clip_of(name, model),
        "vae": vae_for(name),
        "content_images": [picture(seed=1)],
        "content_prompt": ["a photo of snq ball"],
        "content_token": "snq",
        "style_images": [picture(seed=3)],
        "style_prompt": ["a box in w@z style"],
        "style_token": "w@z",
        "other_styles": "",
        "other_contents": "",
        "steps": 3,
        "make_steps": 2,
        "rank": 2,
        "learning_rate": 0.01,
        "seed": 5,
        "run_name": "test b4m",
        "content_strength": 1.0,
        "style_strength": 1.0,
        "settings": TrainingSettings(),
    }
    return _lists({**values, **changes})


def _queue(node: type[io.ComfyNode], inputs: dict[str, list[Any]]) -> io.NodeOutput:
    """Run a node under inference mode, on a locked clone, as ComfyUI does."""
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


def half(name: str = "sd3", role: str = "content", **changes: Any) -> io.NodeOutput:
    return _queue(TrainHalf, half_inputs(name, role, **changes))


def make(contents: list, styles: list, **changes: Any) -> io.NodeOutput:
    return _queue(Make, make_inputs(contents, styles, **changes))


def b4m(name: str = "sd3", **changes: Any) -> io.NodeOutput:
    return _queue(TrainB4M, b4m_inputs(name, **changes))


@cache
def trained(role: str, name: str = "sd3", **changes) -> LoraState:
    """Return a half that was trained for one step; all tests share it."""
    restore_shared()
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", place)
        return half(name, role, steps=1, **changes).result[0]
