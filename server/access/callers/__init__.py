"""The callers file: its format, its tokens, and how it is changed."""
