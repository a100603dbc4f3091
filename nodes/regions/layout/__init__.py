"""Read, draw and rasterize the regions of a picture."""
