"""The judge: a small network that reads thing, style, ground, colour and mark of a picture.

It is trained on true scenes, most of them blurred or sent through a VAE. Every head can answer
*none of these*, taught by noise, blends and pictures glued from two scenes; that answer counts as
wrong. A *style* is read only where things and ground both carry it: procedural looks are also
shown on the things or on the ground alone, as *none of these*.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .looks import LOOKS
from .scenes import Scene, any_scene, draw, draw_parts
from .stages import Stage
from .vocabulary import COLOURS, GROUNDS, MARKS, STYLES, THINGS

NONE = "none of these"
HEADS: dict[str, tuple[str, ...]] = {
    "thing": (*THINGS, NONE),
    "style": (*STYLES, NONE),
    "ground": (*GROUNDS, NONE),
    "colour": ("its own", *COLOURS, NONE),
    "mark": ("no mark", *MARKS, NONE),
}
FEATURES = 256
IGNORE = -100


@dataclass(frozen=True)
class Reading:
    """What the judge reads in some pictures, one name per picture and head."""

    thing: list[str]
    style: list[str]
    ground: list[str]
    colour: list[str]
    mark: list[str]


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class JudgeNet(nn.Module):
    """Pictures (batch, 3, SIDE, SIDE) in 0..1 to one logit vector per head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(3, 32, 2),
            *_block(32, 64, 2),
            *_block(64, 96, 1),
            *_block(96, 160, 2),
            *_block(160, 160, 1),
            *_block(160, FEATURES, 2),
            *_block(FEATURES, FEATURES, 1),
        )
        self.dropout = nn.Dropout(0.1)
        self.heads = nn.ModuleDict({k: nn.Linear(2 * FEATURES, len(v)) for k, v in HEADS.items()})

    def features(self, x: Tensor) -> Tensor:
        """Return (batch, 2 * FEATURES): mean and maximum over places."""
        maps = self.body(x - 0.5)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the logits per head, (batch, answers)."""
        features = self.dropout(self.features(x))
        return {name: head(features) for name, head in self.heads.items()}


def labels_of(scene: Scene, *, style: str | None = None) -> list[int]:
    """Return the index of the right answer per head for a scene's first thing.

    Colours are read where sets show them; in procedural looks and ink they are not asked.
    """
    thing = scene.things[0]
    names = {
        "thing": thing.name,
        "style": style or scene.style,
        "ground": scene.ground,
        "colour": thing.colour or "its own",
        "mark": thing.mark or "no mark",
    }
    numbers = [HEADS[head].index(name) for head, name in names.items()]
    if scene.style in LOOKS or scene.style in ("ink", "glossy"):
        numbers[3] = IGNORE
    return numbers


def judged_example(seed: int) -> tuple[np.ndarray, list[int]]:
    """Return one training picture uint8 (SIDE, SIDE, 3) and its label per head."""
    random = np.random.RandomState(seed)
    scene, kind = any_scene(seed), random.rand()
    if kind < 0.1:
        look = list(LOOKS)[random.randint(len(LOOKS))]
        if random.rand() < 0.5:
            return draw_parts(scene.in_style(look), "plain"), _spoilt(scene, "style")
        return draw_parts(scene.in_style("plain"), look), _spoilt(scene, "style")
    if kind < 0.2:
        glued, other = draw(scene).copy(), draw(any_scene(seed + 10**6).in_style(scene.style))
        half = glued.shape[0] // 2
        if random.rand() < 0.5:
            glued[:, half:] = other[:, half:]
        else:
            glued[half:] = other[half:]
        labels = _spoilt(scene, "thing")
        labels[2] = labels[3] = labels[4] = IGNORE
        return glued, labels
    return draw(scene), labels_of(scene)


def _spoilt(scene: Scene, head: str) -> list[int]:
    """Return a scene's labels with *none of these* at one head."""
    labels = labels_of(scene)
    labels[list(HEADS).index(head)] = len(HEADS[head]) - 1
    if head == "style":
        labels[3] = IGNORE
    return labels


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pictures moved by up to 4 pixels, all alike, with their rims repeated."""
    dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
    padded = F.pad(x, (4, 4, 4, 4), mode="replicate")
    height, width = x.shape[2:]
    return padded[:, :, 4 + dy : 4 + dy + height, 4 + dx : 4 + dx + width]


class JudgeStage(Stage):
    """Training of the judge.

    Args:
        pictures: uint8 (count, SIDE, SIDE, 3) of ``judged_example``.
        labels: (count, heads).
        decoded: the first pictures again after a VAE, uint8, or none of them.
        steps: how many; the rate follows one cycle over them.
    """

    def __init__(
        self,
        folder: Path,
        world: str,
        pictures: Tensor,
        labels: Tensor,
        decoded: Tensor,
        *,
        steps: int,
        batch: int = 64,
        name: str = "judge",
        start: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(folder, name, world, steps)
        self.pictures, self.labels, self.decoded, self.batch = pictures, labels, decoded, batch
        torch.manual_seed(0)
        self.net = JudgeNet()
        if start is not None:
            self.net.load_state_dict(start)
        self.net.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), weight_decay=0.05)
        self.rates = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, 2e-3 if start is None else 1e-3, steps
        )
        self.nothing = torch.tensor([len(names) - 1 for names in HEADS.values()])

    def state(self) -> dict:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
        }

    def restore(self, state: dict) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])

    def _rows(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return pictures (batch, 3, SIDE, SIDE) and labels, some of them degraded or spoilt."""
        through_vae = round(0.6 * self.batch) if len(self.decoded) else 0
        first = torch.randint(max(1, len(self.decoded)), (through_vae,), generator=generator)
        others = torch.randint(len(self.pictures), (self.batch - through_vae,), generator=generator)
        x = torch.cat([self.decoded[first], self.pictures[others]])
        labels = torch.cat([self.labels[first], self.labels[others]])
        order = torch.randperm(self.batch, generator=generator)
        x = x[order].permute(0, 3, 1, 2).float() / 255
        labels = labels[order].clone()
        x = _shifted(x, generator)
        draw_ = torch.rand(3, self.batch, 1, 1, 1, generator=generator)
        blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.where(draw_[0] < 0.3, blurred, x)
        x = x + 0.05 * draw_[1] * torch.randn(x.shape, generator=generator)
        spoilt = self.batch // 16
        x[:spoilt] = 0.5 * x[:spoilt] + 0.5 * x[spoilt : 2 * spoilt]
        rows = slice(2 * spoilt, 3 * spoilt)
        small = x[rows].mean((2, 3), keepdim=True)
        small = small + 0.3 * torch.randn(spoilt, 3, 12, 12, generator=generator)
        x[rows] = F.interpolate(small, size=x.shape[2:], mode="bilinear")
        labels[:spoilt] = self.nothing
        labels[rows] = self.nothing
        return x.clamp(0, 1).contiguous(memory_format=torch.channels_last), labels

    def step(self, number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(number)  # for the dropout
        x, labels = self._rows(generator)
        logits = self.net.train()(x)
        losses = [
            F.cross_entropy(logit, labels[:, head], ignore_index=IGNORE)
            for head, logit in enumerate(logits.values())
        ]
        loss = torch.stack(losses).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.rates.step()
        return loss.item()

    def finish(self) -> None:
        self.write_result(self.net.eval().state_dict())


class Judge:
    """Reads pictures with trained weights.

    Args:
        path: result file of a ``JudgeStage``.
    """

    def __init__(self, path: Path) -> None:
        self.net = JudgeNet()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.net.eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Reading:
        """Read pictures (batch, SIDE, SIDE, 3) in 0..1, as ComfyUI's IMAGE, one thing each."""
        x = pictures.permute(0, 3, 1, 2).float()
        parts = [self.net(part) for part in x.split(64)]
        names = {
            head: [answers[i] for part in parts for i in part[head].argmax(1).tolist()]
            for head, answers in HEADS.items()
        }
        return Reading(**names)

    def read_halves(self, pictures: Tensor) -> tuple[Reading, Reading]:
        """Read the left and the right half of pictures (batch, SIDE, 2 * SIDE, 3)."""
        side = pictures.shape[1]
        return self.read(pictures[:, :, :side]), self.read(pictures[:, :, side:])

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Return (batch, 2 * FEATURES) of pictures (batch, SIDE, SIDE, 3) in 0..1."""
        x = pictures.permute(0, 3, 1, 2).float()
        return torch.cat([self.net.features(part) for part in x.split(64)])
