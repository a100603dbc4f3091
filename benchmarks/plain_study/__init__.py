"""The plain LoRA study on the toy base: a class it has never seen, beside core's trainer."""
