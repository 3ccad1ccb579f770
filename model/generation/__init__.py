"""Generation: sequences that decode together, sampling, constraints and beam search."""
