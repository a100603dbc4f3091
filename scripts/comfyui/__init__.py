"""ComfyUI with the pack: in this process, or as a server in a process of its own."""
