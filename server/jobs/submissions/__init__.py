"""Submissions of jobs: their requests, the files of their corpora, and what is sent twice."""
