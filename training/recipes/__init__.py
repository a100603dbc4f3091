"""Recipes: which rows a step learns from. One file per method, one line per method here."""

from .break_for_make import Half, Make
from .concept import EdLora
from .pair import Pair
from .rows import LearnsWords, Recipe, Row
from .single import Single

__all__ = ["RECIPES", "EdLora", "Half", "LearnsWords", "Make", "Pair", "Recipe", "Row", "Single"]

RECIPES: dict[str, type[Recipe]] = {
    "single": Single,
    "pair": Pair,
    "half": Half,
    "make": Make,
    "concept": EdLora,
}
"""Every training method by name; the contract tests run over this table."""
