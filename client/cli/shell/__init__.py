"""Commands about the command line itself: completion, help topics and the manual page."""
