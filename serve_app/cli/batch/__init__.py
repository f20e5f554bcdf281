"""`animegan batch`: a folder or a bucket of photographs, painted by a Ray cluster through Ray Data."""
