"""Faults in a service under load, hostile uploads, and Stylizers that retire: `scripts/bench chaos`."""
