"""Bridges to other harnesses: our benchmarks as their tasks, our contestants as their models."""
