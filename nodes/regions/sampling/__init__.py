"""Regional prompts, LoRAs and control during sampling."""
