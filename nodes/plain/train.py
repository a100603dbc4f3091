"""The trainer of ordinary LoRAs: inputs, checks, recipe and results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from ...training import Example, Gate, LoraState, Trained, TrainingConfig, lora_state
from ...training.families.defaults import PlainDefaults
from ...training.files.metadata import as_metadata
from ...training.recipes import Single
from ...training.recipes.single import LORA
from ...training.runs.run_store import StoredRun
from ..bridge.conditioning import Conditioning
from ..bridge.digests import content_digest
from ..bridge.inputs import list_input
from ..pictures.buckets import size_summary
from ..pictures.fitted_image import single_images
from ..pictures.picture import Picture, pictures_of
from ..text.training_cond import training_cond, training_latent
from ..trainer.examples import captioned_examples, example, preview_scene, training_caption
from ..trainer.preview import PreviewScene
from ..trainer.trainer import KEPT_CAPTIONS, SHOWN_PICTURES, Trainer, picture_pieces
from .encoded_dataset import EncodedPicture, encoded_pictures

KEPT_TAGS = 200  # most frequent parts of captions in a file's metadata
_REPORTED_CROP = 0.15  # the node lists pictures of which cropping removes more than this fraction


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainTrainer(Trainer):
    """Trainer of an ordinary LoRA.

    Pictures are given as ``images``, or encoded as ``latents`` and ``conditioning``.

    Args:
        captions: One caption for all pictures, or one per picture.
        images: IMAGE batches.
        masks: MASK batches with one mask per picture, or none.
        latents: LATENTs of ComfyUI's training datasets.
        conditioning: One CONDITIONING per LATENT.
    """

    method: ClassVar[str] = "plain"

    captions: Sequence[str] = list_input()
    images: Sequence[Tensor] = list_input(())
    masks: Sequence[Tensor] = list_input(())
    latents: Sequence[Mapping[str, Any]] = list_input(())
    conditioning: Sequence[Conditioning] = list_input(())

    @property
    def defaults(self) -> PlainDefaults:
        """Return the defaults of the method for the base's family."""
        return self.base.family.plain

    @cached_property
    def resolution(self) -> int:
        """Return the side of the square to whose area large pictures are resized."""
        return self.settings.resolution or self.defaults.resolution

    @cached_property
    def config(self) -> TrainingConfig:
        """Return the configuration of the run with all defaults filled in."""
        return self.resolve_config(timesteps=self.defaults.timesteps)

    @cached_property
    def dataset(self) -> list[Picture]:
        """Return the pictures to encode; none if latents are given."""
        if self.latents:
            return []
        multiple = self.base.family.multiple
        return pictures_of(self.images, self.masks, self.captions, self.resolution, multiple)

    @cached_property
    def encoded(self) -> list[EncodedPicture]:
        """Return the encoded pictures of ComfyUI's training datasets."""
        return encoded_pictures(self.base.model, self.latents, self.conditioning)

    @property
    def distinct_captions(self) -> list[str]:
        """Return all distinct captions, in order."""
        return list(dict.fromkeys(picture.caption for picture in self.dataset))

    def check(self) -> None:
        """Raise unless all inputs are valid.

        Raises:
            ValueError: An input is not valid.
        """
        _ = self.config
        self._require_one_source()
        if not self.latents or self.settings.caption_dropout:
            self.base.require_clip()
        _ = self.dataset, self.encoded, self.layers

    def _require_one_source(self) -> None:
        pictures = single_images(self.images)
        if not pictures and not self.latents:
            raise ValueError(
                "training needs pictures, got none; connect images, or latents and conditioning "
                "from Make Training Dataset"
            )
        if pictures and self.latents:
            raise ValueError(
                "training takes pictures either as images or as latents, got both; disconnect one"
            )
        if bool(self.latents) != bool(self.conditioning):
            given, missing = (
                ("latents", "conditioning") if self.latents else ("conditioning", "latents")
            )
            raise ValueError(
                f"latents and conditioning must come together, got {given} without {missing}; "
                "connect both from the same node"
            )
        if self.latents and self.masks:
            raise ValueError(
                "masks belong to images, got masks with latents; connect the images instead"
            )
        if self.latents and self.settings.text_encoder_rate:
            raise ValueError(
                "a text encoder is trained on captions, got conditioning that is encoded already "
                "and "
                f"text_encoder_rate {self.settings.text_encoder_rate:g}; set it to 0 in Training "
                "Settings or connect the images instead"
            )
        if self.latents and self.settings.flip != "never":
            raise ValueError(
                f"latents can't be mirrored, got flip {self.settings.flip} with latents; "
                "set flip to never or connect the images instead"
            )

    def pieces(self) -> dict[str, Any]:
        """Return all values that determine the result, by name, except the number of steps.

        If latents are given, the VAE is not included, and neither is the text encoder without
        caption dropout, because they encode nothing.
        """
        if not self.encoded:
            captions = [picture.caption for picture in self.dataset]
            return {**self.base_pieces(captions=captions), **picture_pieces(self.dataset)}
        unused = {"vae"} if self.settings.caption_dropout else {"vae", "clip"}
        return {
            **self.base_pieces(unused, captions=[]),
            "latents": [content_digest(one.latent) for one in self.encoded],
            "conditioning": [content_digest(self._model_inputs(one)) for one in self.encoded],
        }

    def _model_inputs(self, picture: EncodedPicture) -> dict[str, Any]:
        """Return the parts of a caption that the model uses; SD1.5 ignores the pooled vector."""
        cond = training_cond(self.base.model, picture.conditioning, picture.latent[0])
        return {name: value.cond for name, value in cond.model_conds.items()}

    def prepare(self, begun_for: int) -> tuple[Single, PreviewScene]:
        """Return the encoded recipe and the scene of the previews."""
        examples, *mirrored = self._examples()
        recipe = Single(examples, self.settings.samples, mirrored[0] if mirrored else ())
        gates = {LORA: Gate()}
        prompts = self.distinct_captions or [*self.captions, ""]
        latent = examples[0].latent
        return recipe, preview_scene(self.base, self.settings, prompts, (gates, gates), latent)

    def _examples(self) -> list[list[Example]]:
        """Return the encoded pictures, one list for every view."""
        base, settings = self.base, self.settings
        if not self.encoded:
            return captioned_examples(base, self.dataset, settings)
        empty = training_caption(base, "", settings) if settings.caption_dropout else None
        latents = [training_latent(base.model, one.latent)[0] for one in self.encoded]
        return [
            [
                example(base.model, latent, one.conditioning, empty)
                for latent, one in zip(latents, self.encoded, strict=True)
            ]
        ]

    def results(self, trained: Trained, begun_for: int, identity: str) -> dict[str, LoraState]:
        """Return the LoRA with its metadata."""
        count = len(self.dataset) or len(self.encoded)
        metadata = {
            **self.metadata(trained.steps, identity),
            "pastiche.role": "plain",
            "pastiche.images": count,
            "pastiche.masked": any(picture.mask is not None for picture in self.dataset),
            "pastiche.captions": "\n".join(self.distinct_captions[:KEPT_CAPTIONS]),
            "ss_num_train_images": count,
            **_tags(self.run_name, [picture.caption for picture in self.dataset]),
        }
        return {LORA: lora_state(trained.adapters[LORA], as_metadata(metadata))}

    def details(self) -> dict[str, Any]:
        """Return further values about the run, which are stored in its folder as JSON."""
        return {**super().details(), "pictures": self._picture_lines()}

    def pictures(self) -> list[Tensor]:
        """Return the first pictures in the form they were trained."""
        shown = [picture.fitted()[0].pixels for picture in self.dataset[:SHOWN_PICTURES]]
        always = self.settings.flip == "always"
        return [(pixels.flip(1) if always else pixels)[None] for pixels in shown]

    def lines(self, run: StoredRun) -> list[str]:
        """Return the lines that the node shows: the used values, then the pictures."""
        return [self.values_line(run.steps), *self._picture_lines()]

    def _picture_lines(self) -> list[str]:
        if self.encoded:
            sizes = {tuple(one.latent.shape[1:]) for one in self.encoded}
            return [f"{len(self.encoded)} encoded pictures, latents of {len(sizes)} sizes"]
        pictures = self.dataset
        lines = [
            f"{len(pictures)} pictures: {size_summary(picture.frame for picture in pictures)}, "
            f"mirrored: {self.settings.flip}"
        ]
        masked = sum(picture.mask is not None for picture in pictures)
        if masked:
            lines.append(f"{masked} of them count within their mask alone")
        bare = [str(picture.number) for picture in pictures if not picture.caption]
        if bare:
            lines.append(f"without a caption: picture {', '.join(bare)}")
        lines += [
            f"picture {picture.number} is cut to {picture.kept:.0%} of itself; crop it yourself"
            for picture in pictures
            if picture.kept < 1 - _REPORTED_CROP
        ]
        return lines


def _tags(run: str, captions: Sequence[str]) -> dict[str, Any]:
    """Return the frequency of each comma-separated part of the captions, in kohya's format."""
    parts = (part.strip() for caption in captions for part in caption.split(","))
    counts = Counter(part for part in parts if part)
    return {"ss_tag_frequency": {run: dict(counts.most_common(KEPT_TAGS))}} if counts else {}
