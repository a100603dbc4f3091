"""The plain LoRA study: a class that the base has never seen, against core's trainer."""
