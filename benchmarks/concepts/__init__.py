"""The concept study: subjects learnt with new words, by ED-LoRA and in other ways."""
