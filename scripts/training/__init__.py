"""Training of styles: `scripts/train --help`."""
