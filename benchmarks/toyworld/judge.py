"""The judge: reads object, colour, background, mark, and style on object and ground apart.

A small convolutional net, trained on true renders: half of them through the VAE, blurred and
noisy, a third with object and ground in different styles, so that neither place's style gives
the other's away. Every head has a *none of these* answer, taught by noise, blends, half-noised
latents and objects glued from two classes; it counts as wrong.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import any_scene, cache_folder
from .render import render, render_truth
from .vae import TinyVAE
from .world import BACKGROUNDS, CLASSES, COLOURS, HELD_OUT_STYLES, MARKS, STYLES, Scene, Thing

NONE = "none of these"
HEADS: dict[str, tuple[str, ...]] = {
    "object": (*CLASSES, NONE),
    "colour": (*COLOURS, NONE),
    "background": (*BACKGROUNDS, NONE),
    "style_object": (*STYLES, NONE),
    "style_ground": (*STYLES, NONE),
    "mark": ("no mark", *MARKS, NONE),
}
COLOURLESS = HELD_OUT_STYLES["palette"]
IGNORE = -100
PICTURES, STEPS, BATCH = 10000, 2600, 64
TEST_SEEDS = 5_000_000  # scenes from here on are never trained on


@dataclass(frozen=True)
class Reading:
    """What the judge reads in some pictures, one name per picture and head."""

    object: list[str]
    colour: list[str]
    background: list[str]
    style_object: list[str]
    style_ground: list[str]
    mark: list[str]

    @property
    def style(self) -> list[str]:
        """The style where object and ground both carry it, else *none of these*."""
        pairs = zip(self.style_object, self.style_ground, strict=True)
        return [a if a == b else NONE for a, b in pairs]


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class JudgeNet(nn.Module):
    """Pictures (batch, 3, 64, 64) in 0..1 to one logit vector per head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(3, 32, 2), *_block(32, 64, 2), *_block(64, 64, 1), *_block(64, 128, 2),
            *_block(128, 128, 1), nn.Flatten(), nn.Dropout(0.25),
        )  # fmt: skip
        self.heads = nn.ModuleDict({k: nn.Linear(128 * 64, len(v)) for k, v in HEADS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {name: head(features) for name, head in self.heads.items()}


def _labels(scene: Scene, ground_style: str, whole: bool) -> list[int]:
    thing = scene.things[0]
    names = {
        "object": thing.kind if whole else NONE,
        "colour": thing.colour,
        "background": scene.background,
        "style_object": scene.style,
        "style_ground": ground_style,
        "mark": (thing.mark or "no mark") if whole else NONE,
    }
    numbers = [HEADS[head].index(name) for head, name in names.items()]
    if scene.style == COLOURLESS:
        numbers[1] = IGNORE
    return numbers


def example(seed: int) -> tuple[np.ndarray, list[int]]:
    """One training picture uint8 (64, 64, 3) and its label per head."""
    rng = np.random.RandomState(seed)
    scene, kind = any_scene(seed), rng.rand()
    if kind < 0.35:
        ground_style = STYLES[rng.randint(len(STYLES))]
        return render_truth(scene, ground_style).image, _labels(scene, ground_style, True)
    if kind < 0.47:
        thing = scene.things[0]
        other = CLASSES[(CLASSES.index(thing.kind) + 1 + rng.randint(13)) % len(CLASSES)]
        plain = Thing(thing.kind, thing.colour)
        first = Scene((plain,), scene.background, scene.style, seed=seed)
        second = Scene((Thing(other, thing.colour),), scene.background, scene.style, seed=seed)
        glued, right = render(first).copy(), render(second)
        if rng.rand() < 0.5:
            glued[:, 32:] = right[:, 32:]
        else:
            glued[32:] = right[32:]
        return glued, _labels(first, scene.style, False)
    return render(scene), _labels(scene, scene.style, True)


@torch.no_grad()
def through_vae(vae: TinyVAE, pictures: Tensor, noise: float = 0.0) -> Tensor:
    """Decode the latents of pictures (batch, 3, height, width), after mixing in some noise."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).float()
        mixed = (1 - noise) ** 0.5 * latents + noise**0.5 * torch.randn_like(latents)
        return vae.decode(mixed).float()


def _degrade(x: Tensor, labels: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Round trips, blur, noise, and the rows that must be read as none of these."""
    labels = labels.clone()
    rows = torch.rand(len(x), 1, 1, 1)
    x = torch.where(rows < 0.75, decoded, x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.15, blurred, x)
    x = x + torch.randn_like(x) * torch.rand(len(x), 1, 1, 1) * 0.06
    nothing = torch.tensor([len(names) - 1 for names in HEADS.values()])
    spoiled = len(x) // 10
    blend = 0.5 * x[:spoiled] + 0.5 * x[spoiled : 2 * spoiled]
    mean = x[2 * spoiled : 3 * spoiled].mean((2, 3), keepdim=True)
    static = mean + torch.randn(len(mean), 3, 8, 8) * 0.3
    x[:spoiled] = blend
    x[2 * spoiled : 3 * spoiled] = F.interpolate(static, size=64, mode="bilinear")
    labels[:spoiled] = nothing
    labels[2 * spoiled : 3 * spoiled] = nothing
    return x.clamp(0, 1), labels


def train_judge(vae: TinyVAE) -> JudgeNet:
    """Train the judge; a few minutes on one CPU core."""
    torch.manual_seed(0)
    made = [example(seed) for seed in range(PICTURES)]
    pictures = torch.from_numpy(np.stack([picture for picture, _ in made]))
    labels = torch.tensor([numbers for _, numbers in made])
    logging.info("judge: %d pictures rendered", PICTURES)
    inputs = pictures.permute(0, 3, 1, 2).float() / 255
    decoded = torch.cat([through_vae(vae, part).half() for part in inputs.split(50)])
    # The last twentieth is noised halfway: such rows are none of these.
    half = PICTURES // 20
    decoded[-half:] = torch.cat([through_vae(vae, p, 0.6).half() for p in inputs[-half:].split(50)])
    inputs[-half:] = decoded[-half:].float()
    labels[-half:] = torch.tensor([len(names) - 1 for names in HEADS.values()])
    logging.info("judge: round trips done")
    net = JudgeNet().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, STEPS)
    for step in range(STEPS):
        rows = torch.randint(PICTURES, (BATCH,))
        x, wanted = _degrade(inputs[rows], labels[rows], decoded[rows].float())
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        losses = [
            F.cross_entropy(logit.float(), wanted[:, head], ignore_index=IGNORE)
            for head, logit in enumerate(logits.values())
        ]
        loss = torch.stack(losses).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        rates.step()
        if step % 100 == 0:
            logging.info("judge: step %d loss %.3f", step, loss.item())
    return net.eval()


class Judge:
    """Reads pictures; trained once per world, VAE and judge source, then cached."""

    def __init__(self, vae: TinyVAE) -> None:
        digest = hashlib.sha256(Path(__file__).read_bytes())
        for value in vae.state_dict().values():
            digest.update(value.half().numpy().tobytes())
        self.hash = digest.hexdigest()[:16]
        path = cache_folder() / f"judge_{self.hash}.pt"
        if path.exists():
            self.net = JudgeNet()
            self.net.load_state_dict(torch.load(path, weights_only=True))
            self.net.eval()
        else:
            self.net = train_judge(vae)
            torch.save(self.net.state_dict(), path)

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Reading:
        """Read pictures (batch, 64, 64, 3) in 0..1, as ComfyUI's IMAGE, one object each."""
        x = pictures.permute(0, 3, 1, 2).float()
        parts = [self.net(part) for part in x.split(100)]
        names = {
            head: [answers[i] for part in parts for i in part[head].argmax(1).tolist()]
            for head, answers in HEADS.items()
        }
        return Reading(**names)

    def read_halves(self, pictures: Tensor) -> tuple[Reading, Reading]:
        """Read the left and the right object of pictures (batch, 64, 128, 3)."""
        return self.read(pictures[:, :, :64]), self.read(pictures[:, :, 64:])
