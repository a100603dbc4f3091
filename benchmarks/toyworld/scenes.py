"""The scenes of the example pictures: pairs, and a class that the base has never seen."""

from __future__ import annotations

from .world import Scene, Thing

# One pair per background; the objects differ, so that four pairs share nothing but the style.
PAIR_SCENES = (
    Scene((Thing("house", "red"),), "sand", seed=11),
    Scene((Thing("fish", "yellow"),), "night", seed=12),
    Scene((Thing("heart", "purple"),), "snow", seed=13),
    Scene((Thing("cup", "green"),), "brick", seed=14),
)

# A class that the base has never seen, in half of its colours and backgrounds.
BOAT_SCENES = tuple(
    Scene((Thing("boat", colour),), background, seed=21 + number)
    for number, (colour, background) in enumerate(
        (
            *(("red", "sand"), ("yellow", "night"), ("green", "sand"), ("red", "night")),
            *(("yellow", "sand"), ("green", "night"), ("red", "sand"), ("green", "night")),
        )
    )
)
