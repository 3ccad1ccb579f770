"""The preset AUTO: settings chosen from the corpus, the time limit and the processor."""
