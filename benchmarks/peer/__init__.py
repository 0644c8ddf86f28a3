"""Benchmarks side by side with Hugging Face TRL, which lives in an environment of its own."""
