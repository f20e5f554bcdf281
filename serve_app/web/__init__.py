"""The HTTP interface, over a small `Pipeline` protocol. No Ray."""
