"""Train concepts and use them in prompts (ED-LoRA of Mix-of-Show)."""
