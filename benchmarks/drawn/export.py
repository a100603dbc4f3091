"""Write a base's asset from any step of its training: ``export.py ASSET [--base a] [--fp16]``."""

from __future__ import annotations

import argparse
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
from drawn.unet import UNet  # noqa: E402

DENOISERS = {"a": UNet, "b": MMDiT}
VAES = {"a": "vae4", "b": "vae16"}


def export(asset: Path, base: str = "b", *, int8: bool = True) -> int:
    """Write the asset of a base's averaged weights and return their training step.

    Args:
        asset: File to write.
        base: Name of the base, "a" or "b".
        int8: Whether matrices are stored in int8; False keeps them in fp16.
    """
    world = recorded_hash()
    folder = world_cache() / world
    state = torch.load(folder / f"base_{base}.training.pt", map_location="cpu", weights_only=True)
    names = [name for name, _ in DENOISERS[base]().named_parameters()]
    denoiser = dict(zip(names, state["average"], strict=True))
    vae = torch.load(folder / f"{VAES[base]}.pt", map_location="cpu", weights_only=True)
    text = torch.load(folder / "text.pt", map_location="cpu", weights_only=True)
    metadata = {"world": world, "steps": str(state["step"])}
    write_asset(asset, base, denoiser, vae, text, metadata, int8=int8)
    return state["step"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("asset", type=Path)
    parser.add_argument("--base", choices=("a", "b"), default="b")
    parser.add_argument("--fp16", action="store_true", help="keep matrices in fp16")
    options = parser.parse_args()
    step = export(options.asset, options.base, int8=not options.fp16)
    print(f"step {step}: {options.asset}")
