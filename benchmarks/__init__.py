"""Benchmarks. `make bench` runs those of `benchmarks.__main__` on the default model, one after the other."""
