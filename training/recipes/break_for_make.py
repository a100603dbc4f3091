"""Break-for-Make: train content and style separately as halves of one adapter, then join them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...lora_ops import Parametrization, PartlyLearnable
from ...lora_ops.halves import CONTENT_OWNS, Part, Role, owned_part, partner_part
from ..denoiser import Example
from ..gates import Gate
from ..randomness import coin, shuffled_round
from .rows import Row

HALF = "half"
LORA = "lora"
AUXILIARY_ROWS = 3  # per sample, like the three folders of the released code

GRADIENTS = ("isolated", "leaky")


@dataclass(frozen=True)
class Half:
    """Train the half that a role owns, and its partner on other contents or styles.

    With ``isolated``, main pictures train the owned part and auxiliary pictures the partner. Each
    part is detached in the other's rows, so one backward pass of both losses gives each part its
    own gradient. ``leaky`` follows the released code, in which both losses reach both parts. The
    owned part is updated first, by the main loss and the last step's auxiliary loss, then the
    partner by both losses.

    Args:
        role: ``content`` or ``style``.
        examples: The main pictures.
        auxiliary: Other styles for a content, other contents for a style; may be empty.
        projections: Parametrisation of the adapter.
        content_owns: The part that contents own.
        partner_rate: Multiplier of the partner's learning rate.
        gradients: One of ``GRADIENTS``.
        samples: Number of noise levels per step; each has a main row and up to three auxiliary
            rows.
        mirrored: The main pictures, mirrored; each sample then uses one of both at random.

    Raises:
        ValueError: There is no main picture, the gradients are not one of the two, or the mirrored
            pictures are incomplete.

    Reference: Xu et al. 2024, arXiv:2403.19456, and its released code.
    """

    role: Role
    examples: Sequence[Example]
    auxiliary: Sequence[Example] = ()
    projections: PartlyLearnable = field(default_factory=PartlyLearnable)
    content_owns: Part = CONTENT_OWNS
    partner_rate: float = 0.1
    gradients: str = "isolated"
    samples: int = 1
    mirrored: Sequence[Example] = ()

    def __post_init__(self) -> None:
        if not self.examples:
            raise ValueError("a half needs at least one picture, got none; connect some")
        if self.gradients not in GRADIENTS:
            raise ValueError(
                f"gradients must be one of {' and '.join(GRADIENTS)}, got {self.gradients!r}"
            )
        if self.mirrored and len(self.mirrored) != len(self.examples):
            raise ValueError(
                "every picture needs its mirrored one, got "
                f"{len(self.mirrored)} for {len(self.examples)} pictures"
            )

    def adapters(self) -> Mapping[str, Parametrization]:
        """Return the one adapter, ``half``."""
        return {HALF: self.projections}

    def lr_scales(self) -> Mapping[str, Mapping[str, float]]:
        """Return the multiplier of the partner's learning rate."""
        return {HALF: {partner_part(self.role, self.content_owns): self.partner_rate}}

    def rows(self, step: int, seed: int) -> Sequence[Row]:
        """Return a main row per sample and the auxiliary rows that share its noise."""
        rows = []
        count = min(AUXILIARY_ROWS, len(self.auxiliary))
        main, other = self._gates()
        for sample in range(self.samples):
            turn = step * self.samples + sample
            pick = shuffled_round(seed, len(self.examples), turn)
            turned = self.mirrored and coin(seed, step, sample)
            example = (self.mirrored if turned else self.examples)[pick]
            rows.append(self._row("main", example, main, 1 / self.samples, sample))
            for number in range(count):
                pick = shuffled_round(seed, len(self.auxiliary), turn * count + number, "auxiliary")
                weight = 1 / (self.samples * count)
                rows.append(self._row("auxiliary", self.auxiliary[pick], other, weight, sample))
        return rows

    def _gates(self) -> tuple[Gate, Gate]:
        if self.gradients == "leaky":
            return Gate(), Gate()
        owned, partner = (
            frozenset({part(self.role, self.content_owns)}) for part in (owned_part, partner_part)
        )
        return Gate(frozen=partner), Gate(frozen=owned)

    def _row(self, name: str, example: Example, gate: Gate, weight: float, sample: int) -> Row:
        moves = None
        if self.gradients == "leaky":
            part = owned_part if name == "main" else partner_part
            moves = frozenset({part(self.role, self.content_owns)})
        return Row(name, example, {HALF: gate}, weight, sample, moves)


@dataclass(frozen=True)
class Make:
    """Fine-tune two joined halves on the pictures of both, each with its own prompt.

    The frozen halves do not change. Content and style rows share noise and noise level.

    Args:
        contents: The content's pictures.
        styles: The style's pictures.
        projections: Parametrisation of the adapter, with the joined halves as ``given``.
        samples: Number of noise levels per step; each has a content and a style row.

    Raises:
        ValueError: There is no picture of the content or none of the style.

    Reference: Xu et al. 2024, arXiv:2403.19456, second stage.
    """

    contents: Sequence[Example]
    styles: Sequence[Example]
    projections: PartlyLearnable
    samples: int = 1

    def __post_init__(self) -> None:
        if not self.contents or not self.styles:
            raise ValueError(
                "making a LoRA of two halves by training needs pictures of both, got "
                f"{len(self.contents)} of the content and {len(self.styles)} of the style; "
                "connect both or set steps to 0"
            )

    def adapters(self) -> Mapping[str, Parametrization]:
        """Return the one adapter, ``lora``."""
        return {LORA: self.projections}

    def lr_scales(self) -> Mapping[str, Mapping[str, float]]:
        """Return an empty mapping, because both halves have the same learning rate."""
        return {}

    def rows(self, step: int, seed: int) -> Sequence[Row]:
        """Return a content and a style row per sample."""
        rows = []
        for sample in range(self.samples):
            turn = step * self.samples + sample
            for name, examples in (("content", self.contents), ("style", self.styles)):
                example = examples[shuffled_round(seed, len(examples), turn, name)]
                rows.append(Row(name, example, {LORA: Gate()}, 1 / self.samples, sample))
        return rows
