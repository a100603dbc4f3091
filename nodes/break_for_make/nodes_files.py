"""The nodes Save Half and Load Half."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.inputs import filename_input, precision_input, preview_image_input
from ..bridge.socket_types import HalfType
from ..lora.files import saved_files_fingerprint
from ..lora.folders import fingerprint, lora_names
from .files import OWNER_CHOICES, ROLE_CHOICES, load_half, save_half


class SaveHalf(io.ComfyNode):
    """A half as a file among ComfyUI's LoRAs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheSaveHalf",
            display_name="Save Half",
            category="Pastiche/io",
            description=(
                "Writes a content or style half into the first LoRA folder that can be written "
                "to, with its role, its basis and its word, so that it can be made into one LoRA "
                "with any half of the same basis. Every LoRA loader reads it as an ordinary LoRA. "
                "An existing file is never overwritten."
            ),
            search_aliases=["save half", "break for make", "b4m", "content half", "style half"],
            is_output_node=True,
            inputs=[
                HalfType.Input("half", tooltip="From Train Half or Load Half."),
                filename_input("halves/my_half", "half", "LoRA"),
                precision_input(
                    "Halves of any precision fit together. fp16 halves the file and rounds "
                    "eight times finer than bf16; fp32 keeps every bit."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "The model it was trained on, for halves that do not say so themselves, "
                        "such as those of the released code."
                    ),
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    optional=True,
                    tooltip="Words that call the half up; empty: its token.",
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
        return saved_files_fingerprint(filename)

    @classmethod
    def execute(
        cls, half, filename, precision, model=None, trigger="", image=None
    ) -> io.NodeOutput:
        """Write the file."""
        name = save_half(half, filename, precision, model=model, trigger=trigger, image=image)
        return io.NodeOutput(name, ui={"text": (name,)})


class LoadHalf(io.ComfyNode):
    """A file of a half as PASTICHE_HALF and as LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheLoadHalf",
            display_name="Load Half",
            category="Pastiche/io",
            description=(
                "Reads a content or style half: this pack's, or one of the released "
                "Break-for-Make code. An ordinary LoRA is refused."
            ),
            search_aliases=["load half", "break for make", "b4m", "content half", "style half"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="A .safetensors file in one of the LoRA folders.",
                ),
                io.Combo.Input(
                    "role",
                    options=list(ROLE_CHOICES),
                    default=ROLE_CHOICES[0],
                    tooltip=(
                        "Halves of this pack say it themselves. One of the released code doesn't: "
                        "choose what it was trained as."
                    ),
                ),
                io.Combo.Input(
                    "content_owns",
                    options=list(OWNER_CHOICES),
                    default=OWNER_CHOICES[0],
                    tooltip=(
                        "Which learnt part belongs to contents. Halves of this pack say it "
                        "themselves; for one of the released code, which doesn't, it is down, as "
                        "that code has it, unless you choose up."
                    ),
                ),
            ],
            outputs=[
                HalfType.Output(
                    display_name="half", tooltip="For Make LoRA of Halves, Half Sheet or Save Half."
                ),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The same as an ordinary LoRA, to try the half alone.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name, **others) -> object:
        """Return what changes when the file does."""
        return fingerprint(lora_name)

    @classmethod
    def execute(
        cls, lora_name, role=ROLE_CHOICES[0], content_owns=OWNER_CHOICES[0]
    ) -> io.NodeOutput:
        """Read the file."""
        half = load_half(lora_name, role, content_owns)
        return io.NodeOutput(half, half)


NODES: list[type[io.ComfyNode]] = [SaveHalf, LoadHalf]
