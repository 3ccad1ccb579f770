"""The attacks of `benchmarks/abuse.py`: a module per section, and what they share."""
