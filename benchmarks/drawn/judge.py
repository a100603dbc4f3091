"""Define and train the judge, a small classifier of thing, style, ground, colour and mark.

The judge is trained on true scenes, most of them blurred or sent through a VAE. Every head can
answer *none of these*, which counts as wrong; it learns this answer from noise, blends and pictures
composed of two scenes. The style is read only if things and ground both have it, because pictures
with a procedural look on only one of them are labelled *none of these*.
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
FEATURES = 256  # channels of the last feature map
IGNORE = -100  # label that gives no loss


@dataclass(frozen=True)
class Reading:
    """The judge's answers for a batch of pictures, with one name per picture and head."""

    thing: list[str]
    style: list[str]
    ground: list[str]
    colour: list[str]
    mark: list[str]


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class JudgeNet(nn.Module):
    """A network from pictures (batch, 3, SIDE, SIDE) in 0..1 to one logit vector per head."""

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
        """Return mean and maximum of the last feature map, (batch, 2 * FEATURES)."""
        maps = self.body(x - 0.5)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the logits of each head, (batch, answers)."""
        features = self.dropout(self.features(x))
        return {name: head(features) for name, head in self.heads.items()}


def labels_of(scene: Scene, *, style: str | None = None) -> list[int]:
    """Return the index of each head's right answer for a scene's first thing.

    The colour has the label ``IGNORE`` in procedural looks, ``ink`` and ``glossy``, where it cannot
    be read reliably.

    Args:
        scene: Scene of the picture.
        style: Style to label instead of the scene's; None for the scene's.
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
    """Return a training picture, uint8 (SIDE, SIDE, 3), and its label for each head."""
    random = np.random.RandomState(seed)
    scene, kind = any_scene(seed), random.rand()
    if kind < 0.1:
        look = list(LOOKS)[random.randint(len(LOOKS))]
        if random.rand() < 0.5:
            return draw_parts(scene.in_style(look), "plain"), _labels_with_none(scene, "style")
        return draw_parts(scene.in_style("plain"), look), _labels_with_none(scene, "style")
    if kind < 0.2:
        glued, other = draw(scene).copy(), draw(any_scene(seed + 10**6).in_style(scene.style))
        half = glued.shape[0] // 2
        if random.rand() < 0.5:
            glued[:, half:] = other[:, half:]
        else:
            glued[half:] = other[half:]
        labels = _labels_with_none(scene, "thing")
        labels[2] = labels[3] = labels[4] = IGNORE
        return glued, labels
    return draw(scene), labels_of(scene)


def _labels_with_none(scene: Scene, head: str) -> list[int]:
    """Return a scene's labels with *none of these* for one head."""
    labels = labels_of(scene)
    labels[list(HEADS).index(head)] = len(HEADS[head]) - 1
    if head == "style":
        labels[3] = IGNORE
    return labels


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pictures shifted by the same offset of up to 4 pixels, with repeated borders."""
    dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
    padded = F.pad(x, (4, 4, 4, 4), mode="replicate")
    height, width = x.shape[2:]
    return padded[:, :, 4 + dy : 4 + dy + height, 4 + dx : 4 + dx + width]


class JudgeStage(Stage):
    """Training of the judge.

    Args:
        folder: Folder of checkpoint and result.
        world: Hash of the world.
        pictures: Pictures of ``judged_example``, uint8 (count, SIDE, SIDE, 3).
        labels: Labels of the pictures, (count, heads).
        decoded: The first pictures after a round trip through a VAE, uint8; may be empty.
        steps: Number of steps, over which the learning rate follows one cycle.
        batch: Number of pictures per step.
        name: Name of the stage.
        start: Initial weights; None for random weights.
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
        """Return a batch of pictures (batch, 3, SIDE, SIDE), some of them degraded, and labels."""
        through_vae = round(0.6 * self.batch) if len(self.decoded) else 0
        first = torch.randint(max(1, len(self.decoded)), (through_vae,), generator=generator)
        others = torch.randint(len(self.pictures), (self.batch - through_vae,), generator=generator)
        x = torch.cat([self.decoded[first], self.pictures[others]])
        labels = torch.cat([self.labels[first], self.labels[others]])
        order = torch.randperm(self.batch, generator=generator)
        x = x[order].permute(0, 3, 1, 2).float() / 255
        labels = labels[order].clone()
        x = _shifted(x, generator)
        uniform = torch.rand(3, self.batch, 1, 1, 1, generator=generator)
        blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.where(uniform[0] < 0.3, blurred, x)
        x = x + 0.05 * uniform[1] * torch.randn(x.shape, generator=generator)
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
        torch.manual_seed(number)  # dropout uses the global generator
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
    """The trained judge.

    Args:
        path: Result file of a ``JudgeStage``.
    """

    def __init__(self, path: Path) -> None:
        self.net = JudgeNet()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.net.eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Reading:
        """Return the answers for an IMAGE of pictures with one thing, (batch, SIDE, SIDE, 3)."""
        x = pictures.permute(0, 3, 1, 2).float()
        parts = [self.net(part) for part in x.split(64)]
        names = {
            head: [answers[i] for part in parts for i in part[head].argmax(1).tolist()]
            for head, answers in HEADS.items()
        }
        return Reading(**names)

    def read_halves(self, pictures: Tensor) -> tuple[Reading, Reading]:
        """Return the answers for both halves of wide pictures (batch, SIDE, 2 * SIDE, 3)."""
        side = pictures.shape[1]
        return self.read(pictures[:, :, :side]), self.read(pictures[:, :, side:])

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Return the features (batch, 2 * FEATURES) of pictures (batch, SIDE, SIDE, 3) in 0..1."""
        x = pictures.permute(0, 3, 1, 2).float()
        return torch.cat([self.net.features(part) for part in x.split(64)])
