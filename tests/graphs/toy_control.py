"""A ControlNet for the toy base, as training one begins: a copy of the base, its outputs random."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import itertools

from comfyui.toy_base import toy_checkpoint

CONTROL = "toy_control.safetensors"
WIDTH = 320
_COPIED = ("time_embed.", "input_blocks.", "middle_block.")
_HINT = (3, 16, 16, 32, 32, 96, 96, 256, WIDTH)  # channels of the convolutions that read the hint


def place_control(base_directory: Path) -> None:
    """Write the ControlNet where a server lists it."""
    state = {}
    with safe_open(toy_checkpoint(), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - no dictionary
            name = key.removeprefix("model.diffusion_model.")
            if name != key and name.startswith(_COPIED):
                state[f"control_model.{name}"] = file.get_tensor(key).half()
    generator = torch.Generator().manual_seed(0)

    def convolution(name: str, outs: int, ins: int, side: int, spread: float) -> None:
        weight = torch.randn(outs, ins, side, side, generator=generator)
        scaled = (weight * spread / (ins * side * side) ** 0.5).half()
        state[f"control_model.{name}.weight"] = scaled
        state[f"control_model.{name}.bias"] = torch.zeros(outs, dtype=torch.half)

    for number, (ins, outs) in enumerate(itertools.pairwise(_HINT)):
        convolution(f"input_hint_block.{2 * number}", outs, ins, 3, 2**0.5)
    for name in ("zero_convs.0.0", "zero_convs.1.0", "middle_block_out.0"):
        convolution(name, WIDTH, WIDTH, 1, 1.0)
    folder = base_directory / "models" / "controlnet"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / CONTROL)
