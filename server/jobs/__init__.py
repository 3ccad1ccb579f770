"""Training jobs: submission, queue, worker processes and completion."""
