"""Layouts of the templates that ship with the pack: nodes, links, groups and notes."""

from .concepts import TRAIN_CONCEPT, USE_CONCEPTS
from .fusion import FUSE_CONCEPTS, FUSE_DOWNLOADED_LORAS
from .halves import BREAK_FOR_MAKE, SHELF_OF_HALVES
from .pair import PAIR_CUSTOMIZATION, RESUME_AND_EXTEND, USE_A_STYLE
from .plain import TRAIN_PLAIN_LORA
from .regions import REGIONS_FROM_COLOURS, REGIONS_TWO_SUBJECTS, REGIONS_WITH_CONTROL

LAYOUTS = {
    "pair_customization": PAIR_CUSTOMIZATION,
    "use_a_style": USE_A_STYLE,
    "train_plain_lora": TRAIN_PLAIN_LORA,
    "resume_and_extend": RESUME_AND_EXTEND,
    "train_concept": TRAIN_CONCEPT,
    "use_concepts": USE_CONCEPTS,
    "break_for_make": BREAK_FOR_MAKE,
    "shelf_of_halves": SHELF_OF_HALVES,
    "fuse_concepts": FUSE_CONCEPTS,
    "fuse_downloaded_loras": FUSE_DOWNLOADED_LORAS,
    "regions_two_subjects": REGIONS_TWO_SUBJECTS,
    "regions_from_colours": REGIONS_FROM_COLOURS,
    "regions_with_control": REGIONS_WITH_CONTROL,
}
