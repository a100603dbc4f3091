"""Nodes that make and show regions of a picture."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.node_output import node_display
from ..bridge.socket_types import RegionsType
from .layout.colours import BACKGROUND, regions_from_colours
from .layout.drawing import described, drawn_regions, region_masks
from .layout.sets import Manner, picture_size, region_set, regions_from_masks, warn_of_oddities

_MOST_MASKS = 32
_LARGEST_SIDE = 16384


def _size_input(name: str) -> io.Int.Input:
    return io.Int.Input(
        name,
        default=1024,
        min=16,
        max=_LARGEST_SIDE,
        step=8,
        tooltip=f"Picture {name} in pixels; the {name} of a connected picture takes precedence.",
    )


def _manner_inputs() -> list[io.Input]:
    """Return how regions act that come without settings of their own."""
    return [
        io.Float.Input(
            "feather",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Width of the soft edge as a share of the shorter side; 0 is a hard edge.",
        ),
        io.Float.Input(
            "weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="Against other regions where they overlap; equal weights give their mean.",
        ),
        io.Float.Input(
            "blend",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the global prompt inside the regions; 0 is the paper's.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="Part of the run from which on the regions act.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="Part of the run up to which the regions act.",
        ),
    ]


def _more_regions_input() -> io.Custom.Input:
    return RegionsType.Input(
        "more_regions", optional=True, tooltip="Regions of another node, which come first."
    )


def _regions_output() -> io.Custom.Output:
    return RegionsType.Output(
        display_name="regions",
        tooltip="For Apply Regional Attention, Regional Control Weight and Show Regions.",
    )


class Regions(io.ComfyNode):
    """Regions drawn on the node, written by hand, or laid out in rows and columns."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegions",
            display_name="Regions",
            category="Pastiche/data",
            description=(
                "Regions of a picture: drawn on the node's canvas, written as text, or laid out in "
                "rows and columns. They are shares of the picture and fit every size of it."
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
                        'What the canvas draws, as JSON: {"regions": [...]}, each with name, x, y, '
                        "width and height in shares of the picture, and feather, weight, blend, "
                        "start_percent, end_percent and colour where wanted."
                    ),
                ),
                _size_input("width"),
                _size_input("height"),
                io.String.Input(
                    "layout",
                    default="",
                    multiline=True,
                    tooltip=(
                        'Rows and columns in place of the boxes: "1,2,1 / 1" is three columns, the '
                        "middle one twice as wide, above one. Leave empty for what is drawn."
                    ),
                ),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="A picture to draw over; its width and height are taken.",
                ),
            ],
            outputs=[
                _regions_output(),
                io.Int.Output(display_name="width", tooltip="Picture width, for Empty Latent."),
                io.Int.Output(display_name="height", tooltip="Picture height, for Empty Latent."),
            ],
        )

    @classmethod
    def execute(cls, regions, width, height, layout="", background=None) -> io.NodeOutput:
        """Read the regions."""
        found = region_set(regions, layout)
        size = picture_size(width, height, background)
        warn_of_oddities(found, *size)
        return io.NodeOutput(found, *size)


class RegionsFromMasks(io.ComfyNode):
    """A region for each mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegionsFromMasks",
            display_name="Regions from Masks",
            category="Pastiche/data",
            description=(
                "Makes a region of each mask: painted ones, those of a segmentation, or a batch. "
                "Grey is a soft edge."
            ),
            search_aliases=["mask regions", "segment", "regional prompt mask", "attention couple"],
            inputs=[
                io.Autogrow.Input(
                    "masks",
                    template=io.Autogrow.TemplatePrefix(
                        io.Mask.Input("mask", tooltip="White where the region is."),
                        prefix="mask",
                        min=1,
                        max=_MOST_MASKS,
                    ),
                    tooltip="One for each region, all of one picture; a batch is several.",
                ),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    tooltip=(
                        "One for each mask, with commas between or on lines of their own; empty "
                        "for region 1, region 2 and so on."
                    ),
                ),
                *_manner_inputs(),
                _more_regions_input(),
            ],
            outputs=[_regions_output()],
        )

    @classmethod
    def execute(
        cls,
        masks,
        names,
        feather,
        weight,
        blend,
        start_percent,
        end_percent,
        more_regions=(),
    ) -> io.NodeOutput:
        """Make the regions."""
        manner = Manner(feather, weight, blend, start_percent, end_percent)
        return io.NodeOutput(regions_from_masks(masks, names, manner, more_regions))


class RegionsFromColours(io.ComfyNode):
    """A region for each colour of a painted picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegionsFromColours",
            display_name="Regions from Colours",
            category="Pastiche/data",
            description=(
                "Makes a region of each colour of a picture that is painted in plain colours, such "
                "as a sketch of who stands where."
            ),
            search_aliases=["colour mask", "color mask", "painted regions", "regional prompt"],
            inputs=[
                io.Image.Input("picture", tooltip="Painted in plain colours, of any size."),
                io.String.Input(
                    "colours",
                    default="",
                    multiline=True,
                    tooltip=(
                        "A name and a colour on each line, such as: cat #ff0000. Empty takes every "
                        "colour of the picture but the background, named red, green and so on."
                    ),
                ),
                io.String.Input(
                    "background",
                    default=BACKGROUND,
                    tooltip="Colours that are no region, with commas between.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "How far a pixel may lie from a colour: 0.1 forgives JPEG's noise; lower "
                        "it where two colours are much alike."
                    ),
                ),
                *_manner_inputs(),
                _more_regions_input(),
            ],
            outputs=[_regions_output()],
        )

    @classmethod
    def execute(
        cls,
        picture,
        colours,
        background,
        tolerance,
        feather,
        weight,
        blend,
        start_percent,
        end_percent,
        more_regions=(),
    ) -> io.NodeOutput:
        """Make the regions."""
        manner = Manner(feather, weight, blend, start_percent, end_percent)
        return io.NodeOutput(
            regions_from_colours(picture, colours, background, tolerance, manner, more_regions)
        )


class ShowRegions(io.ComfyNode):
    """Regions drawn over a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheShowRegions",
            display_name="Show Regions",
            category="Pastiche/data",
            description=(
                "Draws regions with their names over a picture or on plain paper, and gives them "
                "as a mask, such as for Apply Style Guidance."
            ),
            search_aliases=["preview regions", "draw regions", "region mask", "regions to mask"],
            is_output_node=True,
            inputs=[
                RegionsType.Input("regions", tooltip="From any node that makes regions."),
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
                    tooltip="What to draw over, such as the finished picture; its size is taken.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The regions over the picture."),
                io.Mask.Output(display_name="mask", tooltip="White where the regions are."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, regions, width, height, opacity, region="", picture=None) -> io.NodeOutput:
        """Draw them."""
        size = picture_size(width, height, picture)
        warn_of_oddities(regions, *size)
        image = drawn_regions(regions, *size, picture, opacity)
        shown = node_display(cls.hidden.unique_id, [image], described(regions))
        return io.NodeOutput(image, region_masks(regions, *size, region), ui=shown)


NODES: list[type[io.ComfyNode]] = [Regions, RegionsFromMasks, RegionsFromColours, ShowRegions]
