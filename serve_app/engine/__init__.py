"""The generator and what paints images with it. The only package that imports torch; this module does not."""
