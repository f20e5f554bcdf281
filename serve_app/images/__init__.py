"""Bytes of image files to frames, and frames to bytes. Neither Ray nor torch."""
