"""The certificates that the server shows and accepts."""
