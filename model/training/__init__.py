"""Training: from a corpus and its settings to a trained model."""
