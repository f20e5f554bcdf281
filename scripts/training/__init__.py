"""Trains styles and measures them: see `scripts/train --help`."""
