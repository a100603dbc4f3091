"""Write a base's asset from its training: ``export.py ASSET [--fp16]``, at any step."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path.insert(0, str(HERE.parent))

from drawn.assemble import write_asset  # noqa: E402
from drawn.fingerprint import recorded_hash  # noqa: E402
from drawn.masters import world_cache  # noqa: E402
from drawn.mmdit import MMDiT  # noqa: E402


def export(asset: Path, *, int8: bool = True) -> int:
    """Write the asset of base B's averaged weights and return their training step."""
    world = recorded_hash()
    folder = world_cache() / world
    state = torch.load(folder / "base_b.training.pt", map_location="cpu", weights_only=True)
    names = [name for name, _ in MMDiT().named_parameters()]
    denoiser = dict(zip(names, state["average"], strict=True))
    vae = torch.load(folder / "vae16.pt", map_location="cpu", weights_only=True)
    text = torch.load(folder / "text.pt", map_location="cpu", weights_only=True)
    metadata = {"world": world, "steps": str(state["step"])}
    write_asset(asset, "b", denoiser, vae, text, metadata, int8=int8)
    return state["step"]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    print(f"step {export(path, int8='--fp16' not in sys.argv)}: {path}")
