"""Blobs: files that several servers share, in a folder or an object store."""
