"""Train a T2I-Adapter on outlines for the toy base, and measure its strength by region."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import comfy.controlnet
import numpy as np
import torch
import torch.nn.functional as F
from comfy.t2i_adapter.adapter import Adapter
from pack.lora_ops import Region
from pack.nodes.regions.layout.sets import KEEPS_A_CELL
from pack.nodes.regions.sampling.control import weighted_control
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer.denoiser import open_denoiser
from torch import Tensor

import nodes

from ..shared.cache import source_digest
from ..shared.toy_base import ToyBase
from ..toyworld.data import wide_scene
from ..toyworld.judge import Judge
from ..toyworld.render import render_truth
from ..toyworld.world import Scene, caption, random_scene
from .layouts import CANVASES, HALVES, NAMES, both_halves, sample

CANVAS = "2:1"
SCENES, BATCH, RATE = 3000, 8, 1e-3
CHANNELS, HINT_CHANNELS, PIXELS = 320, 3, 8
FIRST_NOISE, FIRST_LAYOUT, FIRST_SCENE = 40_000, 9000, 700_000


class OutlineAdapter(Adapter):
    """ComfyUI's T2I-Adapter for the toy base: one level, with a feature for each of two blocks."""

    def __init__(self) -> None:
        super().__init__(
            channels=[CHANNELS, CHANNELS],
            nums_rb=2,
            cin=HINT_CHANNELS * PIXELS**2,
            ksize=1,
            sk=True,
            use_conv=False,
            xl=False,
        )

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        """Return the features in reverse order, because the UNet takes them from the end."""
        features = super().forward(x)["input"]
        return {"input": [feature for feature in features if feature is not None]}


def outline(scene: Scene) -> np.ndarray:
    """Return the outline of a scene's things, ``(height, width)`` in 0..1."""
    mask = torch.from_numpy(render_truth(scene).mask)[None, None]
    edge = F.max_pool2d(mask, 3, 1, 1) + F.max_pool2d(-mask, 3, 1, 1)
    return edge[0, 0].clamp(0, 1).numpy()


def hint_of(scenes: list[Scene]) -> Tensor:
    """Return outlines as IMAGE, ``(scene, height, width, 3)``."""
    edges = torch.from_numpy(np.stack([outline(scene) for scene in scenes]))
    return edges[..., None].expand(-1, -1, -1, 3).contiguous()


class OutlineStudy:
    """Pictures with outlines in two regions, one with weight 1 and the other with weight 0.

    Args:
        base: The toy base.
        judge: Network that classifies the pictures.
        folder: Folder of the trained adapter.
        steps: Steps of the adapter's training.
    """

    def __init__(self, base: ToyBase, judge: Judge, folder: Path, steps: int) -> None:
        self.base, self.judge, self.steps = base, judge, steps
        named = json.dumps([source_digest([Path(__file__)]), steps, SCENES, BATCH, RATE])
        self.digest = hashlib.sha256(named.encode()).hexdigest()[:16]
        self._path = folder / f"outline_adapter_{self.digest}.pt"
        self._net: OutlineAdapter | None = None

    def flags(self, start: int, count: int) -> dict[str, list[bool]]:
        """Return whether the outline's kind was drawn, by weight; prompts never name the kind."""
        generator = np.random.RandomState(FIRST_LAYOUT + start)
        found: dict[str, list[bool]] = {"1": [], "0": [], "without the adapter": []}
        adapter = comfy.controlnet.T2IAdapter(self._trained(), HINT_CHANNELS, PIXELS, "bilinear")
        regions = [Region(name, box) for name, box in zip(NAMES, HALVES, strict=True)]
        for number in range(count):
            scene = _two_kinds(generator)
            weights = generator.permutation(2)
            lines = "\n".join(
                f"{name} {weight}" for name, weight in zip(NAMES, weights, strict=True)
            )
            control = weighted_control(adapter, regions, lines, 1.0, 0.0, KEEPS_A_CELL)
            prompt = self.base.prompt(generic(scene))
            controlled, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
                prompt, self.base.prompt(""), control, hint_of([scene]), 1.0, 0.0, 1.0
            )
            noise = FIRST_NOISE + start
            picture = self._sampled(controlled, noise, number)
            for weight, flag in zip(weights, self._kinds(picture, scene), strict=True):
                found[str(weight)].append(flag)
            bare = self._sampled(prompt, noise, number)
            found["without the adapter"] += self._kinds(bare, scene)
        return found

    def _sampled(self, positive: list, seed: int, row: int) -> Tensor:
        return sample(self.base, self.base.model, positive, CANVAS, 1, seed, row)

    def _kinds(self, picture: Tensor, scene: Scene) -> list[bool]:
        return [thing[0] for thing in both_halves(self.judge, picture, [scene])[0]]

    def _trained(self) -> OutlineAdapter:
        if self._net is None:
            self._net = OutlineAdapter().requires_grad_(False)
            if not self._path.exists():
                self._path.parent.mkdir(exist_ok=True)
                torch.save(self._train(), self._path)
            self._net.load_state_dict(torch.load(self._path, weights_only=True))
        return self._net

    def _train(self) -> dict[str, Tensor]:
        """Return weights trained on pictures like the base's, with captions that name no kinds."""
        torch.manual_seed(0)
        scenes = [wide_scene(FIRST_SCENE + number) for number in range(SCENES)]
        latents, hints = [], []
        for scene in scenes:
            picture = torch.from_numpy(render_truth(scene).image).float()[None] / 255
            encoded = self.base.vae.encode(picture)
            latents.append(training_latent(self.base.model, encoded)[0])
            hints.append(hint_of([scene]).movedim(-1, 1)[0])
        conds = {
            generic(scene): training_cond(
                self.base.model, self.base.prompt(generic(scene)), latents[0]
            )
            for scene in scenes
        }
        with open_denoiser(self.base.model) as denoiser:
            net = OutlineAdapter().requires_grad_(True)
            optimiser = torch.optim.AdamW(net.parameters(), RATE)
            rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, self.steps)
            for step in range(self.steps):
                rows = torch.randint(SCENES, (BATCH,)).tolist()
                latent = torch.stack([latents[row] for row in rows])
                hint = torch.stack([hints[row] for row in rows])
                sigma = denoiser.sigma_at(0.2 + 0.75 * torch.rand(BATCH))
                noise = torch.randn_like(latent)
                x = denoiser.noised(latent, noise, sigma)
                context = torch.cat(
                    [conds[generic(scenes[row])].model_conds["c_crossattn"].cond for row in rows]
                )
                found = denoiser.model.apply_model(
                    x,
                    sigma,
                    c_crossattn=context,
                    control={key: list(value) for key, value in net(hint).items()},
                    transformer_options={"sigmas": sigma},
                )
                # The error of the predicted noise, the loss with which the base was trained.
                scale = denoiser.output_scale(sigma, latent)
                loss = ((found - latent) / scale).square().mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                rates.step()
                if step % 50 == 0:
                    print(f"outline adapter: step {step}, loss {loss.item():.4f}", flush=True)
            return {key: value.detach().clone() for key, value in net.state_dict().items()}


def generic(scene: Scene) -> str:
    """Return a caption that names colours and ground, but calls every kind *thing*."""
    return caption(scene, generic=True)


def _two_kinds(generator: np.random.RandomState) -> Scene:
    width, height = CANVASES[CANVAS]
    while True:
        scene = random_scene(generator, objects=2, wide=True, held_out=None, styles=("plain",))
        one, other = scene.things
        if one.kind != other.kind and one.colour != other.colour:
            return replace(scene, width=width, height=height)
