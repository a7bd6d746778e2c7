"""varemb against what users have today, measured by ``python -m benchmarks.run``."""
