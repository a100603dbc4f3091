"""Train the toy world's base model: ``python benchmarks/toyworld/train.py vae|latents|unet``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

from toyworld.data import any_scene, cache_folder, render_many
from toyworld.vae import train_vae


def main() -> None:
    """Run one stage of the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["vae"])
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    folder = cache_folder()
    if options.stage == "vae":
        pictures = torch.from_numpy(render_many(any_scene, range(8000), options.threads))
        train_vae(
            pictures,
            folder,
            steps=options.steps or 2300,
            batch=options.batch or 8,
            device=options.device,
            resume=options.resume,
        )


if __name__ == "__main__":
    main()
