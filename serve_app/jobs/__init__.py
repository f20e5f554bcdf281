"""Durable jobs: their table in a database and their pictures in a blob store. No Ray, no HTTP."""
