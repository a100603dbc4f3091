"""Vocabulary of the drawn world: things, sets, looks, grounds, colours, marks and held-out parts.

All constants were fixed before the bases were trained. ``fingerprint.py`` computes the world's hash
from them and from sample pictures.
"""

from __future__ import annotations

SIDE = 96  # pixels of a square picture; a wide one is 2 * SIDE by SIDE
MASTER_SIDE = 160  # pixels of a rendered drawing

# Packages of the drawings by set. Captions name all sets except "plain".
SETS = {
    "plain": "@iconify-json/fluent-emoji-flat",
    "soft": "@iconify-json/noto",
    "simple": "@iconify-json/twemoji",
    "crisp": "@iconify-json/emojione",
    "glossy": "@iconify-json/fluent-emoji",
    "ink": "@iconify-json/fluent-emoji-high-contrast",
}
LEARNT_SETS = ("plain", "soft", "simple", "crisp")
# These sets repeat the plain drawings line for line, so they form true before/after pairs.
HELD_OUT_SETS = ("glossy", "ink")

LEARNT_LOOKS = (
    "comic",
    "watercolor",
    "pixel",
    "sketch",
    "chalk",
    "halftone",
    "sepia",
    "oil",
    "stitched",
    "poster",
)
# One look for each property that it changes most.
HELD_OUT_LOOKS = {"palette": "blueprint", "texture": "mosaic", "edges": "neon", "form": "wavy"}

STYLES = (*SETS, *LEARNT_LOOKS, *HELD_OUT_LOOKS.values())
LEARNT_STYLES = (*LEARNT_SETS, *LEARNT_LOOKS)
HELD_OUT_STYLES = (*HELD_OUT_SETS, *HELD_OUT_LOOKS.values())

# Phrases of captions by ground.
GROUNDS = {
    "meadow": ("on a meadow", "in the grass"),
    "sand": ("on sand", "on the beach"),
    "snow": ("on snow", "in the snow"),
    "water": ("on water", "in the sea"),
    "bricks": ("on bricks", "in front of a brick wall"),
    "night": ("at night", "in the night sky"),
    "wood": ("on wood", "on a wooden table"),
    "tiles": ("on tiles", "on a tiled floor"),
    "sunset": ("at sunset", "in the evening sky"),
    "paper": ("on paper", "on ruled paper"),
}

COLOURS = {
    "red": (214, 40, 48),
    "yellow": (246, 200, 28),
    "green": (58, 160, 66),
    "blue": (40, 104, 214),
    "purple": (140, 64, 190),
}

MARKS = ("halo", "wings", "horns", "antennae", "scarf", "sash", "propeller", "badge")

# Names in the packages by name in captions.
LEARNT_THINGS = {
    # animals
    "monkey": "monkey-face", "dog": "dog-face", "fox": "fox", "cat": "cat-face",
    "tiger": "tiger-face", "horse": "horse", "cow": "cow-face", "pig": "pig-face",
    "elephant": "elephant", "mouse": "mouse-face", "rabbit": "rabbit-face", "koala": "koala",
    "chick": "baby-chick", "penguin": "penguin", "duck": "duck", "owl": "owl",
    "turtle": "turtle", "snake": "snake", "whale": "spouting-whale", "fish": "tropical-fish",
    "shark": "shark", "octopus": "octopus", "shrimp": "shrimp", "snail": "snail",
    "butterfly": "butterfly", "caterpillar": "bug", "bee": "honeybee", "ladybug": "lady-beetle",
    "spider": "spider", "deer": "deer", "dragon": "dragon-face",
    # plants and food
    "rose": "rose", "sunflower": "sunflower", "tulip": "tulip", "pine tree": "evergreen-tree",
    "palm tree": "palm-tree", "cactus": "cactus", "mushroom": "mushroom", "grapes": "grapes",
    "watermelon": "watermelon", "tangerine": "tangerine", "lemon": "lemon", "banana": "banana",
    "apple": "red-apple", "pear": "pear", "cherries": "cherries", "strawberry": "strawberry",
    "tomato": "tomato", "carrot": "carrot", "chili": "hot-pepper", "bread": "bread",
    "croissant": "croissant", "pancakes": "pancakes", "cheese": "cheese-wedge",
    "hamburger": "hamburger", "fries": "french-fries", "hotdog": "hot-dog", "taco": "taco",
    "popcorn": "popcorn", "sushi": "sushi", "ice cream": "soft-ice-cream", "cookie": "cookie",
    "cake": "birthday-cake", "lollipop": "lollipop",
    "coffee": "hot-beverage", "wine glass": "wine-glass", "beer": "beer-mug",
    "maple leaf": "fallen-leaf",
    # places and vehicles
    "volcano": "volcano", "island": "desert-island", "house": "house", "castle": "castle",
    "church": "church", "tent": "tent", "circus tent": "circus-tent",
    "temple": "classical-building", "factory": "factory", "locomotive": "locomotive",
    "bus": "bus", "fire truck": "fire-engine", "taxi": "taxi", "car": "automobile",
    "truck": "delivery-truck", "scooter": "motor-scooter", "anchor": "anchor",
    "sailboat": "sailboat", "ship": "passenger-ship", "airplane": "airplane",
    "rocket": "rocket", "traffic light": "vertical-traffic-light", "gas pump": "fuel-pump",
    # sky and weather
    "sun": "sun", "star": "star", "moon": "crescent-moon", "cloud": "cloud",
    "rainbow": "rainbow", "umbrella": "umbrella", "lightning": "high-voltage",
    "snowflake": "snowflake", "flame": "fire", "drop": "droplet",
    # celebration, sport, play
    "balloon": "balloon", "bow": "ribbon", "gift": "wrapped-gift", "soccer ball": "soccer-ball",
    "football": "american-football", "baseball": "baseball", "bowling pins": "bowling",
    "boxing glove": "boxing-glove", "paddle": "ping-pong", "crystal ball": "crystal-ball",
    "gamepad": "video-game", "dice": "game-die", "picture frame": "framed-picture",
    # clothes
    "glasses": "glasses", "shirt": "t-shirt", "dress": "dress", "kimono": "kimono",
    "handbag": "handbag", "sneaker": "running-shoe", "high heel": "high-heeled-shoe",
    "crown": "crown", "top hat": "top-hat", "graduation cap": "graduation-cap", "ring": "ring",
    "diamond": "gem-stone",
    # music and tools
    "bell": "bell", "music note": "musical-note", "microphone": "studio-microphone",
    "headphones": "headphone", "radio": "radio", "trumpet": "trumpet", "guitar": "guitar",
    "violin": "violin", "drum": "drum", "piano": "musical-keyboard",
    "computer": "desktop-computer", "television": "television",
    "camera": "camera", "magnifying glass": "magnifying-glass-tilted-left", "candle": "candle",
    "light bulb": "light-bulb", "books": "books", "scroll": "scroll", "box": "package",
    "mailbox": "postbox", "pencil": "pencil", "paintbrush": "paintbrush", "crayon": "crayon",
    "briefcase": "briefcase", "scissors": "scissors", "key": "key", "hammer": "hammer",
    "shield": "shield", "gear": "gear", "scales": "balance-scale",
    "telescope": "telescope", "door": "door", "bed": "bed", "bathtub": "bathtub",
}  # fmt: skip

HELD_OUT_THINGS = {
    "wolf": "wolf", "chipmunk": "chipmunk", "bat": "bat", "rooster": "rooster",
    "eagle": "eagle", "dolphin": "dolphin", "crab": "crab", "scorpion": "scorpion",
    "hibiscus": "hibiscus", "clover": "four-leaf-clover", "pineapple": "pineapple",
    "kiwi": "kiwi-fruit", "avocado": "avocado", "eggplant": "eggplant", "corn": "ear-of-corn",
    "pizza": "pizza", "donut": "doughnut", "candy": "candy", "vase": "amphora",
    "pagoda": "japanese-castle", "ferris wheel": "ferris-wheel", "ambulance": "ambulance",
    "tractor": "tractor", "motorcycle": "motorcycle", "helicopter": "helicopter",
    "hourglass": "hourglass-done", "snowman": "snowman", "pumpkin": "jack-o-lantern",
    "trophy": "trophy", "basketball": "basketball", "joystick": "joystick",
    "palette": "artist-palette", "jeans": "jeans", "backpack": "backpack",
    "saxophone": "saxophone", "telephone": "telephone", "lantern": "red-paper-lantern",
    "padlock": "locked", "microscope": "microscope", "sofa": "couch-and-lamp",
}  # fmt: skip

THINGS = {**LEARNT_THINGS, **HELD_OUT_THINGS}
PLURAL = ("grapes", "cherries", "pancakes", "fries", "glasses", "scissors", "books", "scales")
PLURAL = (*PLURAL, "jeans", "headphones", "bowling pins", "popcorn", "bread", "cheese", "sushi")
# Drawings with letters or digits are never mirrored.
NEVER_MIRRORED = ("ambulance", "taxi", "mailbox", "fire truck", "piano", "dice", "gas pump")
