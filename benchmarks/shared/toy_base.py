"""Load the toy base and its judge, and train and sample on the base with the pack."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfyui.toy_base import CHECKPOINT, place_toy_base, toy_checkpoint
from environment import cache_folder
from pack.nodes.guidance.apply import with_style_guidance
from pack.nodes.guidance.window import style_window
from pack.nodes.lora.apply import apply_lora
from pack.nodes.pair.train import PairTrainer
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.run import run_training
from pack.nodes.trainer.target_layers import training_sites
from pack.training import LoraState, TrainingConfig, TrainingSettings, lora_state, train
from pack.training.denoiser import Example
from pack.training.recipes.pair import STYLE
from pack.training.recipes.single import Single

import nodes

from ..toyworld.judge import Judge
from ..toyworld.render import render
from ..toyworld.vae import TinyVAE
from ..toyworld.world import Scene, caption, style_words, world_hash

CFG, STEPS, WINDOW_START = 4.0, 14, 0.2
SAMPLER, SCHEDULER = "dpmpp_2m", "karras"
SAMPLING = "dpmpp_2m karras, 14 steps, CFG 4"
GUIDED_SAMPLING = f"{SAMPLING}, window from 0.2"
RANK, NOISE_LEVELS, STYLE_START = 64, 4, 1 / 3


@dataclass(frozen=True)
class Setup:
    """The toy base and the judge that all studies on the toy base share.

    Args:
        base: The toy base.
        judge: Network that classifies the pictures.
        base_digest: Digest of the base's checkpoint.
    """

    base: ToyBase
    judge: Judge
    base_digest: str

    @property
    def metadata(self) -> dict[str, str]:
        """Return the digests of world, judge and base for reports."""
        return {"world": world_hash(), "judge": self.judge.hash, "base": self.base_digest}


def load_setup(threads: int) -> Setup:
    """Load the base and the judge; the judge is trained on the first call.

    All studies share one output folder, in which finished trainings are kept.
    """
    torch.set_num_threads(threads)
    checkpoint = toy_checkpoint()
    place_toy_base(Path(folder_paths.base_path))
    output = cache_folder() / "pair_study" / "output"
    output.mkdir(parents=True, exist_ok=True)
    folder_paths.set_output_directory(str(output))
    judge = Judge(TinyVAE.from_checkpoint(checkpoint))
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]
    return Setup(ToyBase.load(CHECKPOINT), judge, digest)


@dataclass
class ToyBase:
    """MODEL, CLIP and VAE of the assembled toy base, with a cache of encoded prompts."""

    model: Any
    clip: Any
    vae: Any
    _prompts: dict[str, list] = field(default_factory=dict)

    @classmethod
    def load(cls, checkpoint: str) -> ToyBase:
        """Load a checkpoint through the stock loader and return it, set to compute in bf16."""
        model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint)[:3]
        model = model.clone()
        model.set_model_compute_dtype(torch.bfloat16)
        return cls(model, clip, vae)

    def prompt(self, text: str) -> list:
        """Return the CONDITIONING of a prompt."""
        if text not in self._prompts:
            self._prompts[text] = nodes.CLIPTextEncode().encode(self.clip, text)[0]
        return self._prompts[text]

    def batch_prompt(self, texts: Sequence[str]) -> list:
        """Return one CONDITIONING with a row per prompt, for a batch of as many latents."""
        entries = [self.prompt(text)[0] for text in texts]
        pooled = torch.cat([options["pooled_output"] for _, options in entries])
        return [[torch.cat([text for text, _ in entries]), {"pooled_output": pooled}]]

    def learn_pair(self, scenes: Sequence[Scene], style: str, training: Training) -> LoraState:
        """Return the style LoRA that the pack learns from before/after renders of the scenes."""
        request = PairTrainer(
            base=Base(self.model, self.clip, self.vae),
            before=[image_of(scene) for scene in scenes],
            after=[image_of(scene.with_style(style)) for scene in scenes],
            content_prompt=[caption(scene) for scene in scenes],
            style_words=style_words(style),
            steps=training.steps,
            rank=RANK,
            learning_rate=training.learning_rate,
            seed=training.seed,
            run_name=f"{style}_{len(scenes)}",
            style_start=STYLE_START,
            packing="batched",
            settings=TrainingSettings(batch_size=NOISE_LEVELS),
        )
        return run_training(request).loras[STYLE]

    def learn_single(self, scenes: Sequence[Scene], style: str, training: Training) -> LoraState:
        """Return a plain LoRA of the pictures after, trained on as many rows as the pair's run."""
        rows_per_pair_step = 1 + (1 - STYLE_START)
        config = TrainingConfig(
            steps=round(training.steps * rows_per_pair_step),
            rank=RANK,
            learning_rate=training.learning_rate,
            seed=training.seed,
        )
        examples = [self.example(scene.with_style(style)) for scene in scenes]
        with open_denoiser(self.model) as denoiser:
            sites = training_sites(denoiser.patcher, "attention")
            trained = train(denoiser, sites, Single(examples, NOISE_LEVELS), config)
        return lora_state(trained.adapters["lora"], {})

    def example(self, scene: Scene) -> Example:
        """Return the training example of a scene's picture and caption."""
        latent = training_latent(self.model, self.vae.encode(image_of(scene)))[0]
        return Example(latent, training_cond(self.model, self.prompt(caption(scene)), latent))

    def draw(self, scenes: Sequence[Scene], seed: int, drawing: Drawing) -> torch.Tensor:
        """Return one picture per scene, ``(scene, 64, 64, 3)`` in 0..1."""
        plain = [caption(scene) for scene in scenes]
        styled = [f"{text} {drawing.words}" for text in plain]
        model, positive = self.model, self.batch_prompt(plain)
        if drawing.kind == "guidance":
            window = style_window(drawing.strength, WINDOW_START, 1.0, "")
            model = with_style_guidance(model, drawing.lora, self.batch_prompt(styled), window)
        elif drawing.kind == "lora":
            model, _ = apply_lora(model, None, drawing.lora, drawing.strength, 0.0)
            positive = self.batch_prompt(styled)
        latent = nodes.EmptyLatentImage().generate(64, 64, len(scenes))[0]
        sampled = nodes.KSampler().sample(
            model, seed, STEPS, CFG, SAMPLER, SCHEDULER, positive, self.prompt(""), latent
        )[0]
        return nodes.VAEDecode().decode(self.vae, sampled)[0].clone()


@dataclass(frozen=True)
class Training:
    """Options of one training: steps, learning rate and seed."""

    steps: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Drawing:
    """Options of drawing a picture.

    Args:
        kind: ``plain``, ``guidance`` or ``lora``.
        words: Style words that are appended to the prompt; unused if plain.
        lora: Style LoRA; unused if plain.
        strength: Strength of the LoRA, or scale of the guidance.
    """

    kind: str
    words: str = ""
    lora: Mapping[str, torch.Tensor] | None = None
    strength: float = 0.0


def image_of(scene: Scene) -> torch.Tensor:
    """Return the picture of a scene as an IMAGE."""
    return torch.from_numpy(render(scene)).float()[None] / 255
