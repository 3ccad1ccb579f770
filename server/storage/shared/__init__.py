"""Models, corpora and job files that several servers share: rows of a database, and blobs."""
