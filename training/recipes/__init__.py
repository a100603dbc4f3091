"""Recipes: which rows a step learns from. One file per method, one line per method here."""

from .break_for_make import Half, Make
from .pair import Pair
from .rows import Recipe, Row
from .single import Single

__all__ = ["RECIPES", "Half", "Make", "Pair", "Recipe", "Row", "Single"]

RECIPES: dict[str, type[Recipe]] = {
    "single": Single,
    "pair": Pair,
    "half": Half,
    "make": Make,
}
"""Every training method by name; the contract tests run over this table."""
