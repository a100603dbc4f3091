"""Write asset and checkpoint of the training state: ``export.py ASSET CHECKPOINT [--fp16]``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path.insert(0, str(HERE.parent))

from toyworld.assemble import assemble, write_asset  # noqa: E402
from toyworld.data import cache_folder  # noqa: E402
from toyworld.world import world_hash  # noqa: E402


def export(asset: Path, *, int8: bool = True) -> int:
    """Write the asset of the averaged weights; returns their training step."""
    folder = cache_folder()
    state = torch.load(folder / "unet_training.pt", map_location="cpu", weights_only=True)
    unet = dict(zip(state["names"], state["average"], strict=True))
    vae = torch.load(folder / "vae.pt", map_location="cpu", weights_only=True)
    metadata = {"toyworld": world_hash(), "unet_steps": str(state["step"])}
    write_asset(unet, vae, asset, metadata, int8=int8)
    return state["step"]


if __name__ == "__main__":
    asset_path, checkpoint_path = Path(sys.argv[1]), Path(sys.argv[2])
    step = export(asset_path, int8="--fp16" not in sys.argv)
    print(f"step {step}: {assemble(asset_path, checkpoint_path)}")
