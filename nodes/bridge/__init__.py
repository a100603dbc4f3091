"""Wrappers of ComfyUI's own concepts that several folders of nodes/ use."""
