"""animegan-serve: turns photographs into anime with AnimeGANv2, as a Ray Serve deployment graph."""
