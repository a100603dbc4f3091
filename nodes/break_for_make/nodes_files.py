"""The nodes Save Half and Load Half."""

# ComfyUI declares ``execute(**kwargs)`` but passes every declared input by name.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Mapping

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..bridge.inputs import filename_input, precision_input, preview_image_input
from ..bridge.socket_types import HalfType
from ..lora.files import saved_files_fingerprint
from ..lora.folders import fingerprint, lora_names
from .files import OWNER_CHOICES, ROLE_CHOICES, load_half, save_half


class SaveHalf(io.ComfyNode):
    """Saves a half as a file in ComfyUI's LoRA folders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheSaveHalf",
            display_name="Save Half",
            category="Pastiche/io",
            description=(
                "Saves a content or style half in the first LoRA folder that can be written to, "
                "with its role, basis and token, so that it can be combined with any half of the "
                "same basis later. Every LoRA loader can also load it as an ordinary LoRA. An "
                "existing file is never overwritten."
            ),
            search_aliases=["save half", "break for make", "b4m", "content half", "style half"],
            is_output_node=True,
            inputs=[
                HalfType.Input("half", tooltip="Half to save, from Train Half or Load Half."),
                filename_input("halves/my_half", "half", "LoRA"),
                precision_input(
                    "Precision of the stored numbers; halves of any precision fit together. fp16 "
                    "halves the size of the file and rounds eight times finer than bf16; fp32 is "
                    "lossless."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "Model the half was trained on. Connect it if the half's metadata do not "
                        "name the base, as with halves of the released code."
                    ),
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    optional=True,
                    tooltip="Trigger words to store in the file. If empty, the half's token is "
                    "used.",
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
        half: Mapping[str, Tensor],
        filename: str,
        precision: str,
        model: ModelPatcher | None = None,
        trigger: str = "",
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        """Save the file."""
        name = save_half(half, filename, precision, model=model, trigger=trigger, image=image)
        return io.NodeOutput(name, ui={"text": (name,)})


class LoadHalf(io.ComfyNode):
    """Loads the file of a half as PASTICHE_HALF and as LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheLoadHalf",
            display_name="Load Half",
            category="Pastiche/io",
            description=(
                "Loads a content or style half of this pack or of the released Break-for-Make "
                "code. An ordinary LoRA raises an error."
            ),
            search_aliases=["load half", "break for make", "b4m", "content half", "style half"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="File of the half, a .safetensors file in one of the LoRA folders.",
                ),
                io.Combo.Input(
                    "role",
                    options=list(ROLE_CHOICES),
                    default=ROLE_CHOICES[0],
                    tooltip=(
                        "Role of the half. Files of this pack contain it; for a file of the "
                        "released code, choose the role it was trained for."
                    ),
                ),
                io.Combo.Input(
                    "content_owns",
                    options=list(OWNER_CHOICES),
                    default=OWNER_CHOICES[0],
                    tooltip=(
                        "Part of the LoRA that contents own. Files of this pack contain it; for a "
                        "file of the released code it is down unless you choose up."
                    ),
                ),
            ],
            outputs=[
                HalfType.Output(
                    display_name="half",
                    tooltip="Half for Make LoRA of Halves, Half Sheet or Save Half.",
                ),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The half as an ordinary LoRA, to try it alone.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **others: object) -> object:
        """Return a value that changes whenever the file changes."""
        return fingerprint(lora_name)

    @classmethod
    def execute(
        cls,
        lora_name: str,
        role: str = ROLE_CHOICES[0],
        content_owns: str = OWNER_CHOICES[0],
    ) -> io.NodeOutput:
        """Load the file."""
        half = load_half(lora_name, role, content_owns)
        return io.NodeOutput(half, half)


NODES: list[type[io.ComfyNode]] = [SaveHalf, LoadHalf]
