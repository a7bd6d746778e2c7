"""`python -m benchmarks.gpu`: checks and measures everything that runs on a GPU."""
