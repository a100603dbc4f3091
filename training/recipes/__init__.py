"""Recipes, which choose the rows of every training step: one file for each training method."""

from .break_for_make import Half, Make
from .concept import EdLora
from .pair import Pair
from .rows import LearnsWords, Recipe, Row
from .single import Single

__all__ = ["RECIPES", "EdLora", "Half", "LearnsWords", "Make", "Pair", "Recipe", "Row", "Single"]

# All training methods by name; the contract tests run over this table.
RECIPES: dict[str, type[Recipe]] = {
    "single": Single,
    "pair": Pair,
    "half": Half,
    "make": Make,
    "concept": EdLora,
}
