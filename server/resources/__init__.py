"""What the process may use: memory, open files and threads."""
