"""Recipes, which choose the rows of every training step: one file for each training method."""

from .break_for_make import Half, Make
from .concept import EdLora
from .pair import Pair
from .rows import Recipe, Row, WordRecipe
from .single import Single

__all__ = ["RECIPES", "EdLora", "Half", "Make", "Pair", "Recipe", "Row", "Single", "WordRecipe"]

# All training methods by name; the contract tests run over this table.
RECIPES: dict[str, type[Recipe]] = {
    "single": Single,
    "pair": Pair,
    "half": Half,
    "make": Make,
    "concept": EdLora,
}
