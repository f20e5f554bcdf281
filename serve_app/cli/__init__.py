"""The command `animegan`."""
