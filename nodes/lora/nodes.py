"""Nodes that load, save and apply LoRAs."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.inputs import filename_input, precision_input, preview_image_input, strength_input
from .apply import apply_lora
from .files import load_lora, save_lora, saved_files
from .folders import fingerprint, lora_names


class LoadLora(io.ComfyNode):
    """A LoRA file as LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheLoadLora",
            display_name="Load LoRA (Pastiche)",
            category="Pastiche/io",
            description=(
                "Reads a LoRA file: this pack's, ComfyUI's Train LoRA's, kohya's, those of "
                "diffusers and PEFT, and the released Pair Customization code's. A damaged file "
                "is refused, never loaded in part."
            ),
            search_aliases=["load lora", "lora loader", "open lora", "style lora"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="A .safetensors file in one of the LoRA folders.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora", tooltip="The LoRA with its metadata, not yet on a model."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str) -> object:
        """Return what changes when the file does."""
        return fingerprint(lora_name)

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        """Read the file."""
        return io.NodeOutput(load_lora(lora_name))


class ApplyLora(io.ComfyNode):
    """A LoRA on a MODEL and its CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheApplyLora",
            display_name="Apply LoRA (Pastiche)",
            category="Pastiche/io",
            description=(
                "Applies a trained or loaded LoRA as ComfyUI's own Load LoRA does, and says so "
                "when it was made for another model."
            ),
            search_aliases=["apply lora", "lora loader", "use lora", "lora strength"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was made for."),
                io.LoraModel.Input("lora", tooltip="From a training node or Load LoRA (Pastiche)."),
                strength_input(
                    "strength_model",
                    "How strongly the model is changed: 0 not at all, 1 as trained.",
                    most=100.0,
                ),
                strength_input(
                    "strength_clip",
                    "How strongly the text encoder is changed, if the LoRA changes it.",
                    most=100.0,
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder; only LoRAs that change it need it.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA on it."),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder with the LoRA on it."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, lora, strength_model, strength_clip, clip=None) -> io.NodeOutput:
        """Check that the LoRA fits and apply it."""
        return io.NodeOutput(*apply_lora(model, clip, lora, strength_model, strength_clip))


class SaveLora(io.ComfyNode):
    """A LORA_MODEL as a file among ComfyUI's LoRAs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheSaveLora",
            display_name="Save LoRA (Pastiche)",
            category="Pastiche/io",
            description=(
                "Writes a LoRA into the first LoRA folder that can be written to, with its base, "
                "words, settings and picture, so that every LoRA loader finds it at once. An "
                "existing file is never overwritten."
            ),
            search_aliases=["save lora", "export lora", "write lora", "lora safetensors"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", tooltip="From a training node."),
                filename_input("my_style", "LoRA", "LoRA"),
                precision_input(
                    "fp16 halves the file and rounds a trained LoRA's numbers eight times "
                    "finer than bf16; bf16 also holds very large and very small numbers; "
                    "fp32 keeps every bit."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "The model it was trained on, for LoRAs that do not say so themselves, "
                        "such as those of ComfyUI's Train LoRA."
                    ),
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    optional=True,
                    tooltip="Words that call the LoRA up; empty: its style words.",
                ),
                io.String.Input(
                    "style_words",
                    default="",
                    optional=True,
                    tooltip="Its style phrase; empty: the one it was trained with.",
                ),
                preview_image_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="lora_name",
                    tooltip="The file's name as the LoRA loaders list it.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, filename=None, **others) -> object:
        """Return what changes when the saved file is gone."""
        return saved_files(filename)

    @classmethod
    def execute(
        cls, lora, filename, precision, model=None, trigger="", style_words="", image=None
    ) -> io.NodeOutput:
        """Write the file."""
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
