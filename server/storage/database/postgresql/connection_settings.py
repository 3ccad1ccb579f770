"""`ConnectionSettings` is how connections to the database are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from treadle.server.failures import DatabaseUrlError

_DEFAULTS: dict[str, Any] = {
    "application_name": "treadle",
    "client_encoding": "UTF8",
    "connect_timeout": 3,
    # A machine that is gone without a word is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""What holds where the URL does not say otherwise."""


@dataclass(frozen=True)
class ConnectionSettings:
    """How connections are made."""

    parameters: dict[str, Any] = field(repr=False)
    """The parameters of libpq, with the password."""
    place: str
    """The database, as messages name it: without a password."""

    @classmethod
    def of(cls, url: str) -> ConnectionSettings:
        """Returns the settings of a URL.

        Raises:
            DatabaseUrlError: It is malformed; the message does not repeat it.
        """
        try:
            found: dict[str, Any] | None = conninfo_to_dict(url)
        except psycopg.Error:
            found = None
        if found is None or _is_torn(found):
            raise DatabaseUrlError(
                "--database-url is malformed: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
                "with %XX for special characters and no parameters but those of libpq"
            )
        host = found.get("host") or found.get("hostaddr") or "localhost"
        name = found.get("dbname") or found.get("user") or "treadle"
        return cls({**_DEFAULTS, **found}, f"the database {name!r} at {host}")


def _is_torn(found: dict[str, Any]) -> bool:
    """Returns whether a part of the password is in another part, and would be in messages.

    An @ in a password moves what follows it into the host, and a slash into the database.

    Args:
        found: The parts of the URL.
    """
    texts = {name: str(found.get(name) or "") for name in ("host", "hostaddr", "dbname", "port")}
    port = texts["port"].replace(",", "")
    # The folder of a socket may hold any character, and the name of one begins with an @.
    hosts = [host[1:] for host in texts["host"].split(",") if not host.startswith("/")]
    suspect = [*hosts, texts["hostaddr"], texts["dbname"]]
    return any("@" in text for text in suspect) or not (port == "" or port.isdecimal())
