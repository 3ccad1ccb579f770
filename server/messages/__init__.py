"""Messages of the wire contract: requests to settings, results to replies."""
