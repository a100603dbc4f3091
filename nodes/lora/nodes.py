"""The nodes Load LoRA, Save LoRA and Apply LoRA."""

# ComfyUI declares ``execute(**kwargs)`` but passes every declared input by name.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Mapping

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io
from torch import Tensor

from ..bridge.inputs import filename_input, precision_input, preview_image_input, strength_input
from .apply import apply_lora
from .files import load_lora, save_lora, saved_files_fingerprint
from .folders import fingerprint, lora_names


class LoadLora(io.ComfyNode):
    """Loads a LoRA file as LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheLoadLora",
            display_name="Load LoRA (Pastiche)",
            category="Pastiche/io",
            description=(
                "Loads a LoRA file made by this pack, ComfyUI's Train LoRA, kohya's scripts, "
                "diffusers, PEFT or the released Pair Customization code. A damaged file raises "
                "an error and is never loaded in part."
            ),
            search_aliases=["load lora", "lora loader", "open lora", "style lora"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="LoRA file to load, a .safetensors file in one of the LoRA folders.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="LoRA with its metadata, not yet applied to a model.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str) -> object:
        """Return a value that changes whenever the file changes."""
        return fingerprint(lora_name)

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        """Load the file."""
        return io.NodeOutput(load_lora(lora_name))


class ApplyLora(io.ComfyNode):
    """Applies a LoRA to a MODEL and its CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheApplyLora",
            display_name="Apply LoRA (Pastiche)",
            category="Pastiche/io",
            description=(
                "Applies a trained or loaded LoRA like ComfyUI's own Load LoRA, but raises an "
                "error if it was made for another model."
            ),
            search_aliases=["apply lora", "lora loader", "use lora", "lora strength"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Model to apply the LoRA to; it must be of the family the LoRA was "
                    "made for.",
                ),
                io.LoraModel.Input(
                    "lora", tooltip="LoRA from a training node or from Load LoRA (Pastiche)."
                ),
                strength_input(
                    "strength_model",
                    "Strength of the change to the model: 0 is off, 1 is the trained strength.",
                    most=100.0,
                ),
                strength_input(
                    "strength_clip",
                    "Strength of the change to the text encoder. It matters only if the LoRA was "
                    "trained with the text encoder.",
                    most=100.0,
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoder of the model. Connect it if the LoRA was trained with "
                    "the text encoder.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Model with the LoRA applied."),
                io.Clip.Output(display_name="clip", tooltip="Text encoder with the LoRA applied."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        lora: Mapping[str, Tensor],
        strength_model: float,
        strength_clip: float,
        clip: CLIP | None = None,
    ) -> io.NodeOutput:
        """Check that the LoRA fits and apply it."""
        return io.NodeOutput(*apply_lora(model, clip, lora, strength_model, strength_clip))


class SaveLora(io.ComfyNode):
    """Saves a LORA_MODEL as a file in ComfyUI's LoRA folders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheSaveLora",
            display_name="Save LoRA (Pastiche)",
            category="Pastiche/io",
            description=(
                "Saves a LoRA in the first LoRA folder that can be written to, with its base, "
                "trigger words, training settings and picture. It appears in every LoRA loader "
                "at once. An existing file is never overwritten."
            ),
            search_aliases=["save lora", "export lora", "write lora", "lora safetensors"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", tooltip="LoRA to save, from a training node."),
                filename_input("my_style", "LoRA", "LoRA"),
                precision_input(
                    "Precision of the stored numbers. fp16 halves the size of the file and rounds "
                    "eight times finer than bf16, which covers a wider range; fp32 is lossless."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "Model the LoRA was trained on. Connect it if the LoRA's metadata do not "
                        "name the base, as with ComfyUI's Train LoRA."
                    ),
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    optional=True,
                    tooltip="Trigger words to store in the file. If empty, the style words are "
                    "used.",
                ),
                io.String.Input(
                    "style_words",
                    default="",
                    optional=True,
                    tooltip="Style phrase to store in the file. If empty, the one of the training "
                    "is used.",
                ),
                preview_image_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="lora_name",
                    tooltip="Name of the file as the LoRA loaders list it.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, filename: str | None = None, **others: object) -> object:
        """Return a value that changes if the saved file is removed."""
        return saved_files_fingerprint(filename)

    @classmethod
    def execute(
        cls,
        lora: Mapping[str, Tensor],
        filename: str,
        precision: str,
        model: ModelPatcher | None = None,
        trigger: str = "",
        style_words: str = "",
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        """Save the file."""
        name = save_lora(
            lora,
            filename,
            precision,
            model=model,
            trigger=trigger,
            style_words=style_words,
            image=image,
        )
        return io.NodeOutput(name, ui={"text": (name,)})


NODES: list[type[io.ComfyNode]] = [LoadLora, SaveLora, ApplyLora]
