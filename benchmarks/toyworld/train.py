"""Train the toy world's base: ``python benchmarks/toyworld/train.py vae|renders|contexts|...``.

Stages in order: vae, renders, contexts, latents, unet. Each keeps its result in the user's cache
folder, so a later call with --resume goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path.insert(0, str(HERE.parent))

from toyworld.data import any_scene, cache_folder, render_many  # noqa: E402
from toyworld.denoiser import Plan, train_denoiser  # noqa: E402
from toyworld.latents import caption_table, make_contexts, make_latents, make_renders  # noqa: E402
from toyworld.vae import TinyVAE, train_vae  # noqa: E402

STAGES = ("vae", "renders", "contexts", "latents", "unet")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="in all, earlier calls included")
    parser.add_argument("--batch", type=int)
    return parser.parse_args()


def load_vae(folder: Path, device: str) -> TinyVAE:
    """The trained VAE of a cache folder."""
    vae = TinyVAE()
    vae.load_state_dict(torch.load(folder / "vae.pt", map_location="cpu", weights_only=True))
    return vae.eval().to(device, memory_format=torch.channels_last)


def main() -> None:
    """Run one stage of the training."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    folder = cache_folder()
    if options.stage == "vae":
        stored = folder / "vae_pictures.npy"
        if not stored.exists():
            np.save(stored, render_many(any_scene, range(8000), options.threads))
        train_vae(
            torch.from_numpy(np.load(stored)),
            folder,
            steps=options.steps or 2300,
            batch=options.batch or 8,
            device=options.device,
            resume=options.resume,
        )
    elif options.stage == "renders":
        make_renders(folder, options.threads)
    elif options.stage == "contexts":
        comfyui = Path(os.environ["COMFYUI_PATH"])
        make_contexts(folder, caption_table()[0], comfyui, device=options.device)
    elif options.stage == "latents":
        make_latents(folder, load_vae(folder, options.device), device=options.device)
    else:
        plan = Plan(options.steps or 12000, batch=options.batch or 20)
        captions = caption_table()[1]
        train_denoiser(folder, captions, plan, device=options.device, resume=options.resume)


if __name__ == "__main__":
    main()
