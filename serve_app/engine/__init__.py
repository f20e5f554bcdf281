"""The generator and the painting of frames with it. The only package that imports torch; this module does not."""
