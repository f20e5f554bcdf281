"""The process that `animegan run` starts: a Ray of its own on this machine, and the service on it."""
