"""Train the drawn world's models: ``python benchmarks/drawn/train.py STAGE``.

Stages in order: record, vae16, reader, text, rows_b, base_b, judge, ceilings; for base A vae16,
vae4, reader, text, rows_a, base_a, judge, ceilings_a. Each stage keeps its result in the user's cache,
in a folder named after the world's hash; repeating a command resumes the stage where it stopped.
``chain`` runs all remaining stages of base B, ``chain_a`` those of base A. ``contexts`` and
``contexts_a`` are the parts of ``rows_b`` and ``rows_a`` that need no VAE. SIGTERM stops a training
at the end of a step and writes its checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path.insert(0, str(HERE.parent))

from drawn.ceilings import means, measure  # noqa: E402
from drawn.eps_training import EpsPlan, EpsStage  # noqa: E402
from drawn.fingerprint import require_recorded_world, write_record  # noqa: E402
from drawn.flow_training import FlowPlan, FlowStage  # noqa: E402
from drawn.judge import Judge, JudgeStage, judged_example  # noqa: E402
from drawn.masters import world_cache  # noqa: E402
from drawn.rows import CONTEXTS, Rows, encoded_empty, write_contexts, write_latents  # noqa: E402
from drawn.scenes import any_scene, draw_many, draw_square_views, random_scene  # noqa: E402
from drawn.text_encoder import TextEncoder, Tokenizer  # noqa: E402
from drawn.text_training import TextStage  # noqa: E402
from drawn.vae import VAEStage, load_vae, round_trip  # noqa: E402

VAE_PICTURES = 6000  # training pictures of the VAEs
JUDGED = 16000  # training pictures of the judge
DECODED = 8000  # training pictures that the judge also sees after a round trip through the VAE
TEXT_SCENES = 4000  # training scenes of the text encoder
SHARDS = {"square": 12, "wide": 6}  # numbers of shards by shape
STEPS = {
    "vae16": 3600,
    "vae4": 3000,
    "reader": 2000,
    "judge": 2000,
    "text": 900,
    "base_b": 12000,
    "base_a": 9000,
}
CHAIN = ("vae16", "reader", "text", "rows_b", "base_b", "judge", "ceilings")
CHAIN_A = ("vae16", "vae4", "reader", "text", "rows_a", "base_a", "judge", "ceilings_a")
CHAINS = {"chain": CHAIN, "chain_a": CHAIN_A}
PARTS = ("contexts", "rows_b", "ceilings", "contexts_a", "rows_a", "ceilings_a")  # without steps


def main() -> int:
    """Run one stage and return an exit code: 3 if the stage was stopped before its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    stages = ("record", *CHAINS, *STEPS, *PARTS)
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--steps", type=int, help="total number of steps, including those of earlier calls"
    )
    parser.add_argument("--until", type=int, help="stop at this step and write a checkpoint")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    if options.stage == "record":
        write_record()
        return 0
    training = Training(require_recorded_world(), options)
    return 0 if training.run() else 3


class Training:
    """All training stages of one world.

    Args:
        world: Hash of the world.
        options: Options of the command line.
    """

    def __init__(self, world: str, options: argparse.Namespace) -> None:
        self.world, self.options = world, options
        self.folder = world_cache() / world
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> bool:
        """Run the stage that the options name; return whether it finished."""
        if self.options.stage in CHAINS:
            return all(self._run(stage) for stage in CHAINS[self.options.stage])
        return self._run(self.options.stage)

    def _run(self, stage: str) -> bool:
        """Run one stage unless its result exists; return whether it finished."""
        if stage in PARTS:
            return getattr(self, f"_{stage}")()
        if (self.folder / f"{stage}.pt").is_file():
            return True
        create_stage = getattr(self, f"_{stage}")
        return create_stage(self.options.steps or STEPS[stage]).run(until=self.options.until)

    def _stored(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array that ``make`` computes once and the folder keeps."""
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            temporary = path.with_suffix(f".{os.getpid()}.part.npy")
            np.save(temporary, make())
            os.replace(temporary, path)
        return np.load(path)

    def _pictures(self) -> Tensor:
        count, threads = VAE_PICTURES, self.options.threads
        return torch.from_numpy(
            self._stored("vae_pictures", lambda: draw_many(any_scene, range(count), threads))
        )

    def _vae16(self, steps: int) -> VAEStage:
        return self._vae(16, steps)

    def _vae4(self, steps: int) -> VAEStage:
        return self._vae(4, steps)

    def _vae(self, channels: int, steps: int) -> VAEStage:
        """Return the training of a VAE, which starts from the other VAE's weights if they exist."""
        other = self.folder / f"vae{20 - channels}.pt"
        start = torch.load(other, weights_only=True) if other.is_file() else None
        return VAEStage(
            self.folder,
            self.world,
            self._pictures(),
            channels=channels,
            steps=steps,
            batch=8,
            device=self.options.device,
            start=start,
        )

    def _judged(self) -> tuple[Tensor, Tensor]:
        pictures = self._stored("judged_pictures", lambda: _examples(0))
        labels = self._stored("judged_labels", lambda: _examples(1).astype(np.int64))
        return torch.from_numpy(pictures), torch.from_numpy(labels)

    def _decoded(self, pictures: Tensor) -> Tensor:
        vae = load_vae(self.folder / "vae16.pt", self.options.device)

        def decode() -> np.ndarray:
            parts = []
            for part in pictures[:DECODED].split(64):
                x = part.permute(0, 3, 1, 2).float().to(self.options.device) / 255
                y = round_trip(vae, x).permute(0, 2, 3, 1).cpu()
                parts.append((y * 255).round().to(torch.uint8))
            return torch.cat(parts).numpy()

        return torch.from_numpy(self._stored("judged_decoded", decode))

    def _reader(self, steps: int) -> JudgeStage:
        pictures, labels = self._judged()
        none = pictures[:0]
        return JudgeStage(
            self.folder, self.world, pictures, labels, none, steps=steps, name="reader"
        )

    def _judge(self, steps: int) -> JudgeStage:
        pictures, labels = self._judged()
        start = torch.load(self.folder / "reader.pt", weights_only=True)
        decoded = self._decoded(pictures)
        return JudgeStage(
            self.folder, self.world, pictures, labels, decoded, steps=steps, start=start
        )

    def _text(self, steps: int) -> TextStage:
        scenes = [random_scene(seed, wide=seed % 3 == 0) for seed in range(TEXT_SCENES)]
        views = self._stored("text_pictures", lambda: draw_square_views(scenes))
        reader = Judge(self.folder / "reader.pt")
        seen = [
            reader.features(torch.from_numpy(part).float() / 255)
            for part in np.array_split(views, 40)
        ]
        tokenizer = Tokenizer(Path(os.environ["COMFYUI_PATH"]))
        return TextStage(self.folder, self.world, tokenizer, scenes, torch.cat(seen), steps=steps)

    def _ceilings(self, channels: int = 16, name: str = "ceilings") -> bool:
        path = self.folder / f"{name}.json"
        if not path.is_file():
            vae = load_vae(self.folder / f"vae{channels}.pt", self.options.device)
            measured = measure(Judge(self.folder / "judge.pt"), vae, path)
            for name, share in means(measured).items():
                logging.info("ceiling of %s: %.3f", name, share)
        return True

    def _ceilings_a(self) -> bool:
        return self._ceilings(4, "ceilings_a")

    def _encoder(self) -> tuple[TextEncoder, Tokenizer]:
        trained = torch.load(self.folder / "text.pt", weights_only=True)
        return TextEncoder.of(trained), Tokenizer(Path(os.environ["COMFYUI_PATH"]))

    def _contexts(self) -> bool:
        """Write the missing shards of captions, which needs only the text encoder."""
        encoder, tokenizer = self._encoder()
        for shape, count in SHARDS.items():
            for shard in range(count):
                write_contexts(self.folder, encoder, tokenizer, shape, shard)
        return True

    def _rows_b(self) -> bool:
        """Write the missing shards of captions and latents."""
        self._contexts()
        return self._latents(16)

    def _latents(self, channels: int) -> bool:
        vae = load_vae(self.folder / f"vae{channels}.pt", self.options.device)
        for shape, count in SHARDS.items():
            for shard in range(count):
                write_latents(self.folder, vae, shape, shard, self.options.threads)
        return True

    def _contexts_a(self) -> bool:
        """Write base A's missing shards of captions, which needs only the text encoder."""
        encoder, tokenizer = self._encoder()
        for shape, count in SHARDS.items():
            for shard in range(count):
                write_contexts(
                    self.folder, encoder.last_hidden_state, tokenizer, shape, shard, CONTEXTS[4]
                )
        return True

    def _rows_a(self) -> bool:
        """Write base A's missing shards of captions and latents."""
        self._contexts_a()
        return self._latents(4)

    def _base_b(self, steps: int) -> FlowStage:
        encoder, tokenizer = self._encoder()
        rows = Rows(self.folder, 16, SHARDS, encoded_empty(encoder, tokenizer))
        return FlowStage(self.folder, self.world, rows, FlowPlan(steps), self.options.device)

    def _base_a(self, steps: int) -> EpsStage:
        encoder, tokenizer = self._encoder()
        empty = encoded_empty(encoder.last_hidden_state, tokenizer)
        rows = Rows(self.folder, 4, SHARDS, empty)
        return EpsStage(self.folder, self.world, rows, EpsPlan(steps), self.options.device)


def _examples(part: int) -> np.ndarray:
    """Return the judge's training pictures (0) or their labels (1)."""
    parts = (judged_example(seed)[part] for seed in range(JUDGED))
    return np.stack([np.asarray(value) for value in parts])


if __name__ == "__main__":
    sys.exit(main())
