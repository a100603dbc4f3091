"""Train tiny models in a headless process that tests can kill.

The arguments are the folder of ComfyUI's files and a key of ``TRAINERS``. Every line on the standard
input names an output folder, in which a forked child process trains with all modules loaded. The
standard output gets ``begun`` and the child's id, then ``ended`` and its exit status.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts")]

STEPS, SEQUENTIAL = 12, {"packing": "sequential", "style_start": 0.25, "rank": 4}


def train(output: Path, steps: int = STEPS) -> str:
    """Train a pair below an output folder, or resume there, and return the node's text."""
    import folder_paths
    from pack.training import TrainingSettings
    from pair_inputs import queue

    folder_paths.output_directory = str(output)
    settings = TrainingSettings(save_every_steps=1, ema_decay=0.9)
    (text,) = queue(steps=steps, settings=settings, **SEQUENTIAL).ui["text"]
    return text


def train_all_stages(output: Path) -> str:
    """Train and join both halves, or resume their training, and return the node's text."""
    import folder_paths
    from half_inputs import b4m
    from pack.training import TrainingSettings

    folder_paths.output_directory = str(output)
    settings = TrainingSettings(save_every_steps=1)
    changes = {"steps": STEPS, "make_steps": STEPS, "run_name": "killed", "settings": settings}
    (text,) = b4m(**changes).ui["text"]
    return text


def train_concept(output: Path) -> str:
    """Train a concept, or resume its training, and return the node's text."""
    import folder_paths
    from pack.training import TrainingSettings
    from training_concepts import queue

    folder_paths.output_directory = str(output)
    settings = TrainingSettings(save_every_steps=1, ema_decay=0.9)
    (text,) = queue("sd15", steps=STEPS, run_name="killed", settings=settings).ui["text"]
    return text


TRAINERS = {"pair": train, "b4m": train_all_stages, "concept": train_concept}


def _write_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(base_directory: Path, trainer: str = "pair") -> None:
    """Load all modules, then train in a child process for every line."""
    from comfyui.in_process import prepare_comfy

    prepare_comfy(base_directory)
    from comfyui.pack_loader import load_pack

    load_pack("pack")
    import torch
    from tiny import tiny, tiny_clip, tiny_vae

    torch.set_num_threads(1)  # threads don't survive a fork
    tiny("sd3"), tiny_vae(16)
    tiny_clip().tokenize("a ball")
    _write_line("ready 0")
    for line in sys.stdin:
        output = Path(line.strip())
        child = os.fork()
        if child == 0:
            status = 1
            try:
                (output / "text").write_text(TRAINERS[trainer](output))
                status = 0
            finally:
                os._exit(status)
        _write_line(f"begun {child}")
        _write_line(f"ended {os.waitpid(child, 0)[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
