"""Admission and batching of requests, in pure asyncio."""
