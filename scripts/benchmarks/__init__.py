"""The project's benchmarks, one module a subject; `scripts/bench --help` lists the commands."""
