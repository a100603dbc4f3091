"""The concept study: subjects learnt with words of their own, by ED-LoRA and otherwise."""
