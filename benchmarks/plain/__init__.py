"""The plain LoRA study: a class that the base has never seen, compared with core's trainer."""
