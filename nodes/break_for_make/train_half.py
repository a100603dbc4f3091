"""A Break-for-Make half from pictures: the inputs, their check and the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from ...lora_ops import PartlyLearnable, basis_digest
from ...lora_ops.halves import Part, Role
from ...lora_ops.parametrizations.partly_learnable import Start, check_rank
from ...training import Gate, LoraState, Trained, lora_state
from ...training.families.defaults import HalfDefaults
from ...training.files.half import HalfMetadata
from ...training.files.metadata import as_metadata
from ...training.recipes import Half
from ...training.recipes.break_for_make import HALF
from ...training.runs.run_store import StoredRun
from ..bridge.digests import content_digest
from ..bridge.inputs import lines_of, list_input
from ..pictures.fitted_image import single_images
from ..pictures.picture import Picture, pictures_of
from ..trainer.examples import captioned_examples, preview_scene
from ..trainer.preview import PreviewScene
from ..trainer.trainer import SHOWN_PICTURES, Trainer
from .auxiliary import auxiliary_pictures
from .half_pictures import half_pictures

NO_CORRESPONDENCE = (
    "without auxiliary pictures or prompts the partner half rests: the half is learnt beside one "
    "partner alone, and may fit others less; write a few auxiliary_prompts"
)
_LONGEST_QUOTE = 80  # of a prompt in a message


@dataclass(frozen=True, kw_only=True, eq=False)
class HalfTrainer(Trainer):
    """The trainer of a half with its node's inputs.

    Args:
        role: ``content`` or ``style``.
        images: The main pictures.
        prompt: One prompt for all of them or one each.
        token: The word in the prompts that calls the half up; may be empty.
        auxiliary_images: Other styles for a content, other contents for a style; where there are
            none they are drawn from their prompts.
        auxiliary_prompts: Texts of one prompt a line: one per auxiliary picture, or one for all.
        partner_rate: Multiplier of the partner's learning rate; 0 is the default.
        gradients: ``isolated`` or ``leaky``.
        start: How the frozen halves are drawn, as ``PartlyLearnable`` has it.
        content_owns: The part that contents own.
        basis_seed: Seed of the frozen halves.
        prefix: Prefix of the node's inputs for pictures and prompt, for messages.
    """

    method: ClassVar[str] = "b4m"

    role: Role
    images: Sequence[Tensor] = list_input()
    prompt: Sequence[str] = list_input()
    token: str
    auxiliary_images: Sequence[Tensor] = list_input(())
    auxiliary_prompts: Sequence[str] = list_input()
    partner_rate: float = 0.0
    gradients: str = "isolated"
    start: Start = "orthogonal"
    content_owns: Part = "down"
    basis_seed: int = 0
    prefix: str = ""

    @property
    def defaults(self) -> HalfDefaults:
        """Return the method's defaults for the family."""
        return self.base.family.half

    @property
    def names(self) -> tuple[str, str]:
        """Return the names of the node's inputs for pictures and prompt."""
        return f"{self.prefix}images", f"{self.prefix}prompt"

    @property
    def partner_lr_scale(self) -> float:
        """Return the multiplier of the partner's learning rate."""
        return self.partner_rate or self.defaults.partner_rate

    @cached_property
    def facts(self) -> HalfMetadata:
        """Return what the half will say of itself."""
        shapes = {name: layer.shape for name, layer in self.layers.items()}
        basis = basis_digest(shapes, self.config.rank, self.basis_seed, self.start)
        return HalfMetadata(self.role, basis, self.content_owns, self.token.strip())

    @cached_property
    def main(self) -> list[Picture]:
        """Return the main pictures."""
        multiple = self.base.family.multiple
        return half_pictures(self.images, self.prompt, self.resolution, multiple, self.names)

    @property
    def prompts(self) -> list[str]:
        """Return every prompt of the main pictures once, in order."""
        return list(dict.fromkeys(picture.caption for picture in self.main))

    @cached_property
    def auxiliary(self) -> list[Picture]:
        """Return the auxiliary pictures that were given."""
        names = ("auxiliary_images", "auxiliary_prompts")
        prompts = lines_of(self.auxiliary_prompts)
        multiple = self.base.family.multiple
        return half_pictures(self.auxiliary_images, prompts, self.resolution, multiple, names)

    @property
    def drawn(self) -> list[str]:
        """Return the prompts of the auxiliary pictures that the base is to draw."""
        given = single_images(self.auxiliary_images)
        return [] if given else lines_of(self.auxiliary_prompts)

    def check(self) -> None:
        """Check all inputs before anything is encoded.

        Raises:
            ValueError: An input is not what it must be; the message says which and what to do.
        """
        rank = self.config.rank
        self.base.require_clip()
        for name, layer in self.layers.items():
            try:
                check_rank(layer.shape, rank, self.start)
            except ValueError as error:
                raise ValueError(f"{error} (at layer {name})") from error
        self._require_prompts()
        _ = self.auxiliary, self.facts

    def _require_prompts(self) -> None:
        images, prompt = self.names
        token = self.token.strip()
        if not self.main:
            raise ValueError(
                f"a {self.role} half needs at least one picture, got none; connect {images}"
            )
        bare = [str(picture.number) for picture in self.main if not picture.caption]
        if bare:
            raise ValueError(
                f"{prompt} must say what the pictures show, got none for picture "
                f'{", ".join(bare)}; write for example "a photo of snq teddybear"'
            )
        without = [picture.caption for picture in self.main if token not in picture.caption]
        if without:
            quote = without[0]
            if len(quote) > _LONGEST_QUOTE:
                quote = f"{quote[:_LONGEST_QUOTE]}…"
            raise ValueError(
                f"{prompt} must hold the token that calls the {self.role} up, got {quote!r} "
                f"without {token!r}; write it into the prompt or leave the token empty"
            )

    def pieces(self) -> dict[str, Any]:
        """Return what decides the half, by name, excluding the number of steps."""
        given = [picture.caption for picture in (*self.main, *self.auxiliary)]
        pieces = self.base_pieces(prompts=[*given, *self.drawn])
        pieces["half"] = self.facts.as_metadata()
        pieces["pictures"] = [content_digest(picture.image) for picture in self.main]
        pieces["auxiliary"] = [content_digest(picture.image) for picture in self.auxiliary]
        pieces["drawn"] = len(self.drawn)
        pieces["settings"] |= {
            "partner_rate": self.partner_lr_scale,
            "gradients": self.gradients,
        }
        return pieces

    def prepare(self, begun_for: int) -> tuple[Half, PreviewScene]:
        """Return the encoded recipe and what previews show."""
        base, settings = self.base, self.settings
        auxiliary = [*self.auxiliary, *self._drawn_pictures()]
        main, *mirrored = captioned_examples(base, self.main, settings)
        # What auxiliary pictures show is no object of the training: they are never mirrored.
        others, *_ = captioned_examples(base, auxiliary, replace(settings, flip="never"))
        recipe = Half(
            role=self.role,
            examples=main,
            auxiliary=others,
            projections=PartlyLearnable(self.basis_seed, self.start),
            content_owns=self.content_owns,
            partner_rate=self.partner_lr_scale,
            gradients=self.gradients,
            samples=settings.samples,
            mirrored=mirrored[0] if mirrored else (),
        )
        gates = {HALF: Gate()}
        latent = main[0].latent
        return recipe, preview_scene(base, settings, self.prompts, (gates, gates), latent)

    def _drawn_pictures(self) -> list[Picture]:
        """Return the auxiliary pictures that the base draws from their prompts."""
        if not self.drawn:
            return []
        multiple = self.base.family.multiple
        side = self.resolution // multiple * multiple
        pictures = auxiliary_pictures(self.base, self.drawn, self.seed, side)
        return pictures_of(pictures, (), self.drawn, self.resolution, multiple)

    def results(self, trained: Trained, begun_for: int, identity: str) -> dict[str, LoraState]:
        """Return the half with its metadata."""
        metadata = {
            **self.metadata(trained.steps, identity),
            **self.facts.as_metadata(),
            "pastiche.stages": "break",
            "pastiche.prompts": "\n".join(self.prompts),
            "pastiche.gradients": self.gradients,
            "pastiche.start": self.start,
            "pastiche.basis_seed": self.basis_seed,
            "pastiche.auxiliary": len(self.auxiliary) + len(self.drawn),
            "modelspec.trigger_phrase": self.facts.token,
            "ss_num_train_images": len(self.main),
        }
        return {HALF: lora_state(trained.adapters[HALF], as_metadata(metadata))}

    def details(self) -> dict[str, Any]:
        """Return plain values about the run for its folder."""
        return {**super().details(), "prompts": self.prompts}

    def pictures(self) -> list[Tensor]:
        """Return the first pictures as they were trained."""
        return [one.fitted()[0].pixels[None] for one in self.main[:SHOWN_PICTURES]]

    def lines(self, run: StoredRun) -> list[str]:
        """Return the lines that the node shows: values with the source of defaults, pictures."""
        return [self.values_line(run.steps), self._pictures_line()]

    def _pictures_line(self) -> str:
        """Return what the half is learnt from."""
        auxiliary = len(self.auxiliary) or len(self.drawn)
        count = len(self.main)
        pictures = "1 picture" if count == 1 else f"{count} pictures"
        if not auxiliary:
            return f"{pictures}; {NO_CORRESPONDENCE}"
        how = "drawn by the base" if self.drawn else "given"
        return f"{pictures} beside {auxiliary} auxiliary ones, {how}"
