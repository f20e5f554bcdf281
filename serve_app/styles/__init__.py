"""Which styles there are, and fetching those of the catalogue. Neither Ray nor torch."""
