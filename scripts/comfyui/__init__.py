"""Run ComfyUI with the pack, in this process or as a server in a separate one."""
