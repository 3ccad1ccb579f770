"""What `benchmarks/abuse.py` does to a server: a module a section, and what they share."""
