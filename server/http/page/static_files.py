"""`StaticFile` is one file of the page, read once and served from memory."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Media types by the end of a file's name. Files of other kinds are not served."""


@dataclass(frozen=True)
class StaticFile:
    """One file of the page."""

    name: str
    """Its name, such as `main.js`."""
    media_type: str
    """Its media type, as in `Content-Type`."""
    content: bytes
    """Its bytes."""
    etag: str
    """Its hash in quotes, as in `ETag`."""

    def is_known(self, if_none_match: str) -> bool:
        """Returns whether a client has this very file already.

        Args:
            if_none_match: The header `If-None-Match`: `*`, or tags separated by commas.
        """
        tags = re.findall(r'(?:W/)?("[^"]*")', if_none_match)
        return if_none_match.strip() == "*" or self.etag in tags


def static_files() -> dict[str, StaticFile]:
    """Reads all files of the page.

    Returns:
        The files by name. A path that is no name in here leads nowhere, so that a request can
        name no other file of the disk.
    """
    found = {}
    for path in files(__package__).joinpath("static").iterdir():
        media_type = _TYPES.get(path.name[path.name.rfind(".") :])
        if media_type is None or not path.is_file():
            continue
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        found[path.name] = StaticFile(path.name, media_type, content, etag)
    return found
