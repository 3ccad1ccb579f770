"""Executors give processes to the jobs that run; `executor.Executor` says what one offers."""
