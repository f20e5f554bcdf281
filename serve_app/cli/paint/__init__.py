"""`animegan paint`: photographs from files, folders and pipes, painted in this process or by a running service."""
