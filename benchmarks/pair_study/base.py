"""The toy base in this process: loaded once, trained on and drawn with through the pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
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
from pack.training.recipes import Single
from pack.training.recipes.pair import STYLE
from toyworld.render import render
from toyworld.world import Scene, caption, style_words

CFG, STEPS, WINDOW_START = 4.0, 14, 0.2
SAMPLER, SCHEDULER = "dpmpp_2m", "karras"
RANK, NOISE_LEVELS, STYLE_START = 64, 4, 1 / 3


@dataclass
class ToyBase:
    """MODEL, CLIP and VAE of the assembled toy base, with its prompts kept."""

    model: Any
    clip: Any
    vae: Any
    nodes: Any
    _prompts: dict[str, list] = field(default_factory=dict)

    @classmethod
    def load(cls, checkpoint: str) -> ToyBase:
        """Load the checkpoint of that name through the stock loader, to be computed in bf16."""
        import nodes

        model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint)[:3]
        model = model.clone()
        model.set_model_compute_dtype(torch.bfloat16)
        return cls(model, clip, vae, nodes)

    def prompt(self, text: str) -> list:
        """The CONDITIONING of a prompt."""
        if text not in self._prompts:
            self._prompts[text] = self.nodes.CLIPTextEncode().encode(self.clip, text)[0]
        return self._prompts[text]

    def batch_prompt(self, texts: Sequence[str]) -> list:
        """One CONDITIONING with a row per prompt, for a batch of as many latents."""
        entries = [self.prompt(text)[0] for text in texts]
        pooled = torch.cat([options["pooled_output"] for _, options in entries])
        return [[torch.cat([text for text, _ in entries]), {"pooled_output": pooled}]]

    def learn_pair(self, scenes: Sequence[Scene], style: str, how: Training) -> LoraState:
        """The style that the pack's trainer learns from before/after renders of the scenes."""
        request = PairTrainer(
            base=Base(self.model, self.clip, self.vae),
            before=[_image(scene) for scene in scenes],
            after=[_image(scene.with_style(style)) for scene in scenes],
            content_prompt=[caption(scene) for scene in scenes],
            style_words=style_words(style),
            steps=how.steps,
            rank=RANK,
            learning_rate=how.learning_rate,
            seed=how.seed,
            run_name=f"{style}_{len(scenes)}",
            style_start=STYLE_START,
            packing="batched",
            settings=TrainingSettings(batch_size=NOISE_LEVELS),
        )
        return run_training(request).loras[STYLE]

    def learn_single(self, scenes: Sequence[Scene], style: str, how: Training) -> LoraState:
        """A plain LoRA on the pictures after alone, with as many rows as the pair's run."""
        rows_per_pair_step = 1 + (1 - STYLE_START)
        config = TrainingConfig(
            steps=round(how.steps * rows_per_pair_step),
            rank=RANK,
            learning_rate=how.learning_rate,
            seed=how.seed,
        )
        examples = [self._example(scene.with_style(style)) for scene in scenes]
        with open_denoiser(self.model) as denoiser:
            sites = training_sites(denoiser.patcher, "attention")
            trained = train(denoiser, sites, Single(examples, NOISE_LEVELS), config)
        return lora_state(trained.adapters["lora"], {})

    def _example(self, scene: Scene) -> Example:
        latent = training_latent(self.model, self.vae.encode(_image(scene)))[0]
        return Example(latent, training_cond(self.model, self.prompt(caption(scene)), latent))

    def draw(self, scenes: Sequence[Scene], seed: int, how: Drawing) -> torch.Tensor:
        """One picture per scene, ``(scene, 64, 64, 3)`` in 0..1; plain where ``how`` is plain."""
        plain = [caption(scene) for scene in scenes]
        styled = [f"{text} {how.words}" for text in plain]
        model, positive = self.model, self.batch_prompt(plain)
        if how.kind == "guidance":
            window = style_window(how.strength, WINDOW_START, 1.0, "")
            model = with_style_guidance(model, how.lora, self.batch_prompt(styled), window)
        elif how.kind == "lora":
            model, _ = apply_lora(model, None, how.lora, how.strength, 0.0)
            positive = self.batch_prompt(styled)
        latent = self.nodes.EmptyLatentImage().generate(64, 64, len(scenes))[0]
        sampled = self.nodes.KSampler().sample(
            model, seed, STEPS, CFG, SAMPLER, SCHEDULER, positive, self.prompt(""), latent
        )[0]
        return self.nodes.VAEDecode().decode(self.vae, sampled)[0].clone()


@dataclass(frozen=True)
class Training:
    """Steps, rate and seed of one training."""

    steps: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Drawing:
    """How a picture is drawn: ``plain``, with ``guidance`` at a scale, or with a ``lora``."""

    kind: str
    words: str = ""
    lora: Mapping[str, torch.Tensor] | None = None
    strength: float = 0.0


def _image(scene: Scene) -> torch.Tensor:
    return torch.from_numpy(render(scene)).float()[None] / 255
