"""Admission control, batching and rates of work, in pure asyncio."""
