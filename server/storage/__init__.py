"""The data directory: models, corpora, the database of jobs, and their retention."""
