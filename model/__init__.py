"""What the loops compute for: tokenizers, corpora, networks, training, generation, scoring."""
