"""The resources of the process: memory, open files and threads."""
