"""Models that travel: the file of a version is sent to a client, or comes from one."""
