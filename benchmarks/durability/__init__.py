"""Kill -9 under load: `python -m benchmarks.durability`; what is promised and what was killed: docs/durability.md."""
