"""Nodes that create and show regions of a picture."""

# ComfyNode declares ``execute`` with **kwargs alone, though ComfyUI passes every input by name.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ...lora_ops import Region
from ..bridge.node_output import node_display
from ..bridge.socket_types import RegionsType
from .layout.colours import BACKGROUND, regions_from_colours
from .layout.drawing import drawn_regions, region_list, region_masks
from .layout.sets import (
    RegionDefaults,
    picture_size,
    region_set,
    regions_from_masks,
    warn_of_oddities,
)

_MAX_MASKS = 32
_LARGEST_SIDE = 16384


def _size_input(name: str) -> io.Int.Input:
    return io.Int.Input(
        name,
        default=1024,
        min=16,
        max=_LARGEST_SIDE,
        step=8,
        tooltip=f"Picture {name} in pixels; a connected picture's {name} takes precedence.",
    )


def _defaults_inputs() -> list[io.Input]:
    """Return the inputs for the settings of regions that are made from masks or colours."""
    return [
        io.Float.Input(
            "feather",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Width of the soft edge as a fraction of the shorter side; 0 is a hard edge.",
        ),
        io.Float.Input(
            "weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="Weight of the regions where they overlap; equal weights give the mean.",
        ),
        io.Float.Input(
            "blend",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Fraction of the global prompt inside the regions; the paper uses 0.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="Fraction of the run at which the regions begin to act.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="Fraction of the run at which the regions stop acting.",
        ),
    ]


def _more_regions_input() -> io.Input:
    return RegionsType.Input(
        "more_regions",
        optional=True,
        tooltip="Regions of another node, which are put before the new ones.",
    )


def _regions_output() -> io.Output:
    return RegionsType.Output(
        display_name="regions",
        tooltip="Regions for Apply Regional Attention, Regional Control Weight and Show Regions.",
    )


class Regions(io.ComfyNode):
    """Define regions by drawing, as text, or in rows and columns."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegions",
            display_name="Regions",
            category="Pastiche/data",
            description=(
                "Defines regions of a picture: drawn on the node's canvas, written as text, or "
                "laid out in rows and columns. They are stored as fractions of the picture, so "
                "they fit every size."
            ),
            search_aliases=[
                "regional prompt",
                "boxes",
                "areas",
                "layout",
                "composition",
                "mix of show",
            ],
            inputs=[
                io.String.Input(
                    "regions",
                    default="",
                    multiline=True,
                    tooltip=(
                        'Regions of the canvas as JSON: {"regions": [...]}, each with name, x, y, '
                        "width and height in fractions of the picture, and optionally feather, "
                        "weight, blend, start_percent, end_percent and colour."
                    ),
                ),
                _size_input("width"),
                _size_input("height"),
                io.String.Input(
                    "layout",
                    default="",
                    multiline=True,
                    tooltip=(
                        'Rows and columns that replace the boxes: "1,2,1 / 1" is three columns, '
                        "the middle one twice as wide, above a single one. Leave empty to use the "
                        "drawn regions."
                    ),
                ),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="Picture behind the canvas; its width and height take precedence.",
                ),
            ],
            outputs=[
                _regions_output(),
                io.Int.Output(display_name="width", tooltip="Picture width, for Empty Latent."),
                io.Int.Output(display_name="height", tooltip="Picture height, for Empty Latent."),
            ],
        )

    @classmethod
    def execute(
        cls,
        regions: str,
        width: int,
        height: int,
        layout: str = "",
        background: Tensor | None = None,
    ) -> io.NodeOutput:
        """Parse the regions."""
        found = region_set(regions, layout)
        size = picture_size(width, height, background)
        warn_of_oddities(found, *size)
        return io.NodeOutput(found, *size)


class RegionsFromMasks(io.ComfyNode):
    """Create a region from each mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegionsFromMasks",
            display_name="Regions from Masks",
            category="Pastiche/data",
            description=(
                "Creates a region from each mask: painted masks, those of a segmentation, or a "
                "batch. Grey is a soft edge."
            ),
            search_aliases=["mask regions", "segment", "regional prompt mask", "attention couple"],
            inputs=[
                io.Autogrow.Input(
                    "masks",
                    template=io.Autogrow.TemplatePrefix(
                        io.Mask.Input("mask", tooltip="Mask that is white in the region."),
                        prefix="mask",
                        min=1,
                        max=_MAX_MASKS,
                    ),
                    tooltip="Masks of one picture, one per region; a batch counts as several.",
                ),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    tooltip=(
                        "Names of the regions, one per mask, separated by commas or line breaks. "
                        "Leave empty for region 1, region 2 and so on."
                    ),
                ),
                *_defaults_inputs(),
                _more_regions_input(),
            ],
            outputs=[_regions_output()],
        )

    @classmethod
    def execute(
        cls,
        masks: dict[str, Tensor],
        names: str,
        feather: float,
        weight: float,
        blend: float,
        start_percent: float,
        end_percent: float,
        more_regions: Sequence[Region] = (),
    ) -> io.NodeOutput:
        """Create the regions."""
        defaults = RegionDefaults(feather, weight, blend, start_percent, end_percent)
        return io.NodeOutput(regions_from_masks(masks, names, defaults, more_regions))


class RegionsFromColours(io.ComfyNode):
    """Create a region from each colour of a painted picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegionsFromColours",
            display_name="Regions from Colours",
            category="Pastiche/data",
            description=(
                "Creates a region from each colour of a picture that is painted in plain colours, "
                "such as a sketch of where each subject stands."
            ),
            search_aliases=["colour mask", "color mask", "painted regions", "regional prompt"],
            inputs=[
                io.Image.Input("picture", tooltip="Picture in plain colours, of any size."),
                io.String.Input(
                    "colours",
                    default="",
                    multiline=True,
                    tooltip=(
                        "A name and a colour on each line, such as: cat #ff0000. Leave empty to "
                        "use every colour except the background, named red, green and so on."
                    ),
                ),
                io.String.Input(
                    "background",
                    default=BACKGROUND,
                    tooltip="Colours that are not regions, separated by commas.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Largest difference of a pixel from its colour. 0.1 tolerates the noise of "
                        "JPEG; lower it if two colours are similar."
                    ),
                ),
                *_defaults_inputs(),
                _more_regions_input(),
            ],
            outputs=[_regions_output()],
        )

    @classmethod
    def execute(
        cls,
        picture: Tensor,
        colours: str,
        background: str,
        tolerance: float,
        feather: float,
        weight: float,
        blend: float,
        start_percent: float,
        end_percent: float,
        more_regions: Sequence[Region] = (),
    ) -> io.NodeOutput:
        """Create the regions."""
        defaults = RegionDefaults(feather, weight, blend, start_percent, end_percent)
        return io.NodeOutput(
            regions_from_colours(picture, colours, background, tolerance, defaults, more_regions)
        )


class ShowRegions(io.ComfyNode):
    """Draw regions over a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheShowRegions",
            display_name="Show Regions",
            category="Pastiche/data",
            description=(
                "Draws regions with their names over a picture or on plain paper, and returns them "
                "as a mask, for example for Apply Style Guidance."
            ),
            search_aliases=["preview regions", "draw regions", "region mask", "regions to mask"],
            is_output_node=True,
            inputs=[
                RegionsType.Input("regions", tooltip="Regions from any node that creates them."),
                _size_input("width"),
                _size_input("height"),
                io.Float.Input(
                    "opacity",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Opacity of the colours over the picture.",
                ),
                io.String.Input(
                    "region",
                    default="",
                    tooltip="Name of the region that the mask output shows; empty for all.",
                ),
                io.Image.Input(
                    "picture",
                    optional=True,
                    tooltip="Picture to draw on, such as the result; its size takes precedence.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The regions over the picture."),
                io.Mask.Output(display_name="mask", tooltip="Mask that is white in the regions."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        regions: Sequence[Region],
        width: int,
        height: int,
        opacity: float,
        region: str = "",
        picture: Tensor | None = None,
    ) -> io.NodeOutput:
        """Draw the regions."""
        size = picture_size(width, height, picture)
        warn_of_oddities(regions, *size)
        image = drawn_regions(regions, *size, picture, opacity)
        shown = node_display(cls.hidden.unique_id, [image], region_list(regions))
        return io.NodeOutput(image, region_masks(regions, *size, region), ui=shown)


NODES: list[type[io.ComfyNode]] = [Regions, RegionsFromMasks, RegionsFromColours, ShowRegions]
