"""The page in the browser: its files, which talk to the service by the Connect protocol."""
