"""What serving costs beside the engine: `python -m benchmarks.serving` (docs/serving-speed.md)."""
