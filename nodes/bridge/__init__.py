"""The only code that touches ComfyUI beneath the nodes; one file per ComfyUI concept."""
