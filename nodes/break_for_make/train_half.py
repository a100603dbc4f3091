"""The trainer of Break-for-Make halves: inputs, checks, recipe and results."""

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
    "without auxiliary pictures or prompts the partner half is not trained: the half is learnt "
    "with a single partner and may fit others less; write a few auxiliary_prompts"
)
_LONGEST_QUOTE = 80  # prompts in messages are cut to this length


@dataclass(frozen=True, kw_only=True, eq=False)
class HalfTrainer(Trainer):
    """Trainer of a content or a style half.

    Args:
        role: Role of the half, ``content`` or ``style``.
        images: Main pictures, which show the content or the style.
        prompt: One prompt for all main pictures, or one per picture.
        token: Trigger word in the prompts; may be empty.
        auxiliary_images: Pictures in other styles for a content, or of other contents for a style;
            without any they are drawn from their prompts.
        auxiliary_prompts: Texts with one prompt per line: one per auxiliary picture, or one for
            all.
        partner_rate: Multiplier of the partner's learning rate; 0 is the default.
        gradients: ``isolated`` or ``leaky``; see ``training.recipes.Half``.
        start: Initialisation of the frozen halves; see ``PartlyLearnable``.
        content_owns: Part that contents own.
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
        """Return the defaults of the method for the base's family."""
        return self.base.family.half

    @property
    def input_names(self) -> tuple[str, str]:
        """Return the names of the node's inputs for pictures and prompt."""
        return f"{self.prefix}images", f"{self.prefix}prompt"

    @property
    def partner_lr_scale(self) -> float:
        """Return the multiplier of the partner's learning rate."""
        return self.partner_rate or self.defaults.partner_rate

    @cached_property
    def half_metadata(self) -> HalfMetadata:
        """Return the metadata that make the result a half."""
        shapes = {name: layer.shape for name, layer in self.layers.items()}
        basis = basis_digest(shapes, self.config.rank, self.basis_seed, self.start)
        return HalfMetadata(self.role, basis, self.content_owns, self.token.strip())

    @cached_property
    def main(self) -> list[Picture]:
        """Return the main pictures with their prompts."""
        multiple = self.base.family.multiple
        return half_pictures(self.images, self.prompt, self.resolution, multiple, self.input_names)

    @property
    def prompts(self) -> list[str]:
        """Return all distinct prompts of the main pictures, in order."""
        return list(dict.fromkeys(picture.caption for picture in self.main))

    @cached_property
    def auxiliary(self) -> list[Picture]:
        """Return the auxiliary pictures that are given as images."""
        names = ("auxiliary_images", "auxiliary_prompts")
        prompts = lines_of(self.auxiliary_prompts)
        multiple = self.base.family.multiple
        return half_pictures(self.auxiliary_images, prompts, self.resolution, multiple, names)

    @property
    def prompts_to_draw(self) -> list[str]:
        """Return the prompts of the auxiliary pictures that the base draws."""
        given = single_images(self.auxiliary_images)
        return [] if given else lines_of(self.auxiliary_prompts)

    def check(self) -> None:
        """Raise unless all inputs are valid.

        Raises:
            ValueError: An input is not valid.
        """
        rank = self.config.rank
        self.base.require_clip()
        for name, layer in self.layers.items():
            try:
                check_rank(layer.shape, rank, self.start)
            except ValueError as error:
                raise ValueError(f"{error} (at layer {name})") from error
        self._require_prompts()
        _ = self.auxiliary, self.half_metadata

    def _require_prompts(self) -> None:
        images, prompt = self.input_names
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
        """Return all values that determine the result, by name, except the number of steps."""
        given = [picture.caption for picture in (*self.main, *self.auxiliary)]
        pieces = self.base_pieces(prompts=[*given, *self.prompts_to_draw])
        pieces["half"] = self.half_metadata.as_metadata()
        pieces["pictures"] = [content_digest(picture.image) for picture in self.main]
        pieces["auxiliary"] = [content_digest(picture.image) for picture in self.auxiliary]
        pieces["drawn"] = len(self.prompts_to_draw)
        pieces["settings"] |= {
            "partner_rate": self.partner_lr_scale,
            "gradients": self.gradients,
        }
        return pieces

    def prepare(self, begun_for: int) -> tuple[Half, PreviewScene]:
        """Return the encoded recipe and the scene of the previews."""
        base, settings = self.base, self.settings
        auxiliary = [*self.auxiliary, *self._drawn_pictures()]
        main, *mirrored = captioned_examples(base, self.main, settings)
        # Auxiliary pictures are never mirrored, as the half must not learn what they show.
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
        """Return the auxiliary pictures that the base has drawn from their prompts."""
        if not self.prompts_to_draw:
            return []
        multiple = self.base.family.multiple
        side = self.resolution // multiple * multiple
        pictures = auxiliary_pictures(self.base, self.prompts_to_draw, self.seed, side)
        return pictures_of(pictures, (), self.prompts_to_draw, self.resolution, multiple)

    def results(self, trained: Trained, begun_for: int, identity: str) -> dict[str, LoraState]:
        """Return the half with its metadata."""
        metadata = {
            **self.metadata(trained.steps, identity),
            **self.half_metadata.as_metadata(),
            "pastiche.stages": "break",
            "pastiche.prompts": "\n".join(self.prompts),
            "pastiche.gradients": self.gradients,
            "pastiche.start": self.start,
            "pastiche.basis_seed": self.basis_seed,
            "pastiche.auxiliary": len(self.auxiliary) + len(self.prompts_to_draw),
            "modelspec.trigger_phrase": self.half_metadata.token,
            "ss_num_train_images": len(self.main),
        }
        return {HALF: lora_state(trained.adapters[HALF], as_metadata(metadata))}

    def details(self) -> dict[str, Any]:
        """Return further values about the run, which are stored in its folder as JSON."""
        return {**super().details(), "prompts": self.prompts}

    def pictures(self) -> list[Tensor]:
        """Return the first main pictures in the form they were trained."""
        return [one.fitted()[0].pixels[None] for one in self.main[:SHOWN_PICTURES]]

    def lines(self, run: StoredRun) -> list[str]:
        """Return the lines that the node shows: the used values, then the pictures."""
        return [self.values_line(run.steps), self._pictures_line()]

    def _pictures_line(self) -> str:
        """Return the line about the main and the auxiliary pictures."""
        auxiliary = len(self.auxiliary) or len(self.prompts_to_draw)
        count = len(self.main)
        pictures = "1 picture" if count == 1 else f"{count} pictures"
        if not auxiliary:
            return f"{pictures}; {NO_CORRESPONDENCE}"
        origin = "drawn by the base" if self.prompts_to_draw else "given"
        return f"{pictures} and {auxiliary} auxiliary ones, {origin}"
