"""The engine of PostgreSQL, for servers that share one database: `--database-url`."""
