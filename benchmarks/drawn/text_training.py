"""Train the text encoder by a contrastive loss with pictures and by linear probes of attributes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .scenes import Scene, caption
from .stages import Stage
from .text_encoder import (
    TOKEN_NORM,
    WIDTH,
    TextEncoder,
    Tokenizer,
    at_end,
    final_norm,
    learning_rate,
)
from .vocabulary import COLOURS, GROUNDS, LEARNT_STYLES, LEARNT_THINGS

PROBES = {
    "first": ("none", *LEARNT_THINGS),
    "second": ("none", *LEARNT_THINGS),
    "style": LEARNT_STYLES,
    "ground": ("none", *GROUNDS),
    "colour": ("none", *COLOURS),
}
LENGTH = 36  # tokens of the longest caption, with room for padding
APART = 0.35  # largest cosine of the end tokens of different things that is not penalised
IGNORE = -100


def truths(scene: Scene, text: str) -> list[int]:
    """Return the index of every probe's answer; attributes that the caption omits are "none"."""
    things = [t.name if t.name in text else "none" for t in scene.things[:2]]
    coloured = [t.colour for t in scene.things if t.colour and t.colour in text]
    ground = scene.ground if any(words in text for words in GROUNDS[scene.ground]) else "none"
    answers = {
        "first": things[0],
        "second": things[1] if len(things) > 1 else "none",
        "style": scene.style,
        "ground": ground,
        "colour": coloured[0] if coloured else "none",
    }
    return [PROBES[name].index(answer) for name, answer in answers.items()]


def caption_tokens(tokenizer: Tokenizer, captions: list[str]) -> list[int]:
    """Return the sorted ids of all tokens in captions, including start and end."""
    return sorted({token for text in captions for token in tokenizer.ids([text])[0].tolist()})


class TextStage(Stage):
    """Contrastive training of end tokens with picture features, and training of linear probes.

    Args:
        folder: Folder of checkpoint and result.
        world: Hash of the world.
        tokenizer: Tokenizer of the captions.
        scenes: Learnt scenes of square and wide pictures.
        features: Features of the pictures from the judge, (scene, width); a wide picture's are
            those of the half with its first thing.
        steps: Number of steps.
        batch: Number of scenes per step.
        captions_each: Number of captions per scene; caption ``number`` has the seed
            ``scene.seed + number``.
    """

    def __init__(
        self,
        folder: Path,
        world: str,
        tokenizer: Tokenizer,
        scenes: list[Scene],
        features: Tensor,
        *,
        steps: int,
        batch: int = 40,
        captions_each: int = 4,
    ) -> None:
        super().__init__(folder, "text", world, steps)
        self.batch, self.scenes = batch, scenes
        self.texts = [
            [caption(scene, scene.seed + number) for number in range(captions_each)]
            for scene in scenes
        ]
        flat = ["", *(text for texts in self.texts for text in texts)]
        self.tokenizer = tokenizer
        torch.manual_seed(1)
        self.encoder = TextEncoder(caption_tokens(tokenizer, flat))
        centred = features - features.mean(0)
        self.features = centred / centred.std()
        self._initialise_rows()
        self.to_text = nn.Linear(WIDTH, 128, bias=False)
        self.to_picture = nn.Linear(features.shape[1], 128, bias=False)
        self.probes = nn.ModuleDict({k: nn.Linear(WIDTH, len(v)) for k, v in PROBES.items()})
        heads = [self.to_text, self.to_picture, self.probes]
        low_rank = [*self.encoder.down.values(), *self.encoder.up.values()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [self.encoder.rows], "peak": 1e-3, "weight_decay": 0.0},
                {"params": low_rank, "peak": 1.5e-3, "weight_decay": 0.0},
                {"params": [p for h in heads for p in h.parameters()], "peak": 3e-3},
            ],
            betas=(0.9, 0.98),
        )

    @torch.no_grad()
    def _initialise_rows(self) -> None:
        """Initialise the row of each one-token thing by projected mean features of its pictures.

        Similar things then have similar rows, so a new word's row can be found among them.
        """
        generator = torch.Generator().manual_seed(7)
        projection = torch.randn(self.features.shape[1], WIDTH, generator=generator)
        for name in LEARNT_THINGS:
            tokens = self.tokenizer.words(name)
            chosen = [
                number
                for number, scene in enumerate(self.scenes)
                if len(scene.things) == 1 and scene.things[0].name == name
            ]
            if len(tokens) != 1 or not chosen:
                continue
            mean = self.features[chosen].mean(0)
            row = F.normalize(mean @ projection, dim=0) * TOKEN_NORM
            place = self.encoder.place[tokens[0]]
            own = self.encoder.rows[place]
            self.encoder.rows[place] = F.normalize(row + 0.5 * own, dim=0) * TOKEN_NORM

    def state(self) -> dict:
        return {
            "encoder": self.encoder.state_dict(),
            "heads": {
                "to_text": self.to_text.state_dict(),
                "to_picture": self.to_picture.state_dict(),
                "probes": self.probes.state_dict(),
            },
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict) -> None:
        self.encoder.load_state_dict(state["encoder"])
        for name, values in state["heads"].items():
            getattr(self, name).load_state_dict(values)
        self.optimizer.load_state_dict(state["optimizer"])

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(self.scenes), (self.batch,), generator=generator).tolist()
        forms = torch.randint(len(self.texts[0]), (self.batch,), generator=generator).tolist()
        texts = [self.texts[number][form] for number, form in zip(chosen, forms, strict=True)]
        longest = max(len(self.tokenizer.words(text)) for text in texts)
        ids = self.tokenizer.ids(texts, min(LENGTH, longest + 5))
        pairs = zip(chosen, texts, strict=True)
        answers = torch.tensor([truths(self.scenes[number], text) for number, text in pairs])
        return ids, answers, self.features[chosen]

    def step(self, number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        ids, answers, pictures = self._batch(generator)
        x = self.encoder(ids)
        end = final_norm(at_end(x, ids))
        padding = final_norm(x[:, -1])
        losses = []
        for weight, vectors in ((1.0, end), (0.4, padding)):
            for column, probe in enumerate(self.probes.values()):
                losses.append(weight * F.cross_entropy(probe(vectors), answers[:, column]))
        picture_vectors = F.normalize(self.to_picture(pictures), dim=1)
        text_vectors = F.normalize(self.to_text(end), dim=1)
        logits = text_vectors @ picture_vectors.T / 0.07
        target = torch.arange(self.batch)
        losses.append(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        for vectors in (F.normalize(end, dim=1), F.normalize(at_end(x, ids), dim=1)):
            others = answers[:, None, 0] != answers[None, :, 0]
            losses.append(4 * F.relu(vectors @ vectors.T - APART)[others].square().mean())
        # These penalties keep the rows near CLIP-L's norm and the output near unit variance.
        norms = self.encoder.rows.norm(dim=1)
        losses.append(20 * F.relu(norms - 1.2 * TOKEN_NORM).square().mean())
        losses.append(0.1 * (x.std() - 1).square())
        loss = torch.stack(losses).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.steps, group["peak"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, count: int = 400) -> dict[str, float]:
        """Return the share of right answers of each probe at the end token."""
        generator = torch.Generator().manual_seed(10**6)
        right = {name: 0 for name in PROBES}
        rounds = count // self.batch
        for _ in range(rounds):
            ids, answers, _ = self._batch(generator)
            end = final_norm(at_end(self.encoder(ids), ids))
            for column, (name, probe) in enumerate(self.probes.items()):
                right[name] += int((probe(end).argmax(1) == answers[:, column]).sum())
        return {name: value / (rounds * self.batch) for name, value in right.items()}

    def finish(self) -> None:
        self.write_result(self.encoder.trained())
