"""Nodes that load training data."""

# ComfyNode declares these methods with **kwargs alone, though ComfyUI passes every input by name.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.node_output import node_display
from .folder import folder_error, folder_fingerprint, load_training_images, training_folders


class LoadTrainingImages(io.ComfyNode):
    """Load a folder of pictures with captions and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheLoadTrainingImages",
            display_name="Load Training Images (Pastiche)",
            category="Pastiche/data",
            description=(
                "Loads a folder of pictures below ComfyUI's input folder. Pictures are turned "
                "upright and scaled to a few sizes; captions come from text files of the same "
                "name, masks from transparency or from a picture name.mask.png. The report lists "
                "what was found and what may be wrong; a damaged picture stops the run by name."
            ),
            search_aliases=[
                "dataset",
                "load folder",
                "image folder",
                "captions",
                "training data",
                "buckets",
                "batch load images",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=training_folders(),
                    tooltip="Folder with pictures below ComfyUI's input folder. Press R after "
                    "copying a new one there; subfolders are separate entries.",
                ),
                io.String.Input(
                    "caption",
                    default="",
                    multiline=True,
                    placeholder="a photo of a sbu dog",
                    tooltip="Caption of every picture without a text file of the same name, such "
                    "as dog_1.txt for dog_1.png.",
                ),
                io.Int.Input(
                    "resolution",
                    default=1024,
                    min=0,
                    max=8192,
                    step=64,
                    tooltip="Larger pictures are reduced to the area of a square with this side; "
                    "smaller ones keep their size. Use the resolution you train at: 512 for "
                    "SD1.5, 1024 for SDXL. 0 keeps all pictures unchanged.",
                ),
                io.Int.Input(
                    "bucket_step",
                    default=64,
                    min=8,
                    max=256,
                    step=8,
                    advanced=True,
                    tooltip="Sides are cropped to a multiple of this. Larger steps give fewer "
                    "sizes, so more pictures share a batch, but crop more away.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="List of the pictures."
                ),
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="List of captions, one per picture.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="List of masks, one per picture: white where it counts, all white "
                    "without a mask.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Counts and problems, one per line."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str) -> bool | str:
        """Return true, or the reason why the folder can't be used."""
        return folder_error(folder) or True

    @classmethod
    def fingerprint_inputs(cls, folder: str, **others: object) -> str:
        """Return a digest that changes whenever a file of the folder changes."""
        return folder_fingerprint(folder)

    @classmethod
    def execute(cls, folder: str, caption: str, resolution: int, bucket_step: int) -> io.NodeOutput:
        """Load the folder."""
        found = load_training_images(folder, caption, resolution, bucket_step)
        display = node_display(cls.hidden.unique_id, [], found.report)
        return io.NodeOutput(found.images, found.captions, found.masks, found.report, ui=display)


NODES: list[type[io.ComfyNode]] = [LoadTrainingImages]
