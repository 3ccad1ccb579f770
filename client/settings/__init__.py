"""Settings of a connection: flags, environment variables and profiles of a configuration file."""
