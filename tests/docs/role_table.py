"""Writes the table of calls and roles in docs/security.md from the table that the server reads.

PYTHONPATH=tests python -m docs.role_table
"""

from __future__ import annotations

import re

from treadle.server.access.caller import Role
from treadle.server.access.permissions import PERMISSIONS

from .pages import ROOT

PAGE = ROOT / "docs" / "security.md"
BEGIN = "<!-- Written by tests/docs/role_table.py. -->\n"
END = "<!-- End of what is written. -->\n"

READ = "models that it may read"
WRITE = "models that it may write"
OWN = "its own jobs"
FILES = "its own files"
USED = f"{READ}, weights of {OWN}"
SCOPES = {
    "CancelJob": OWN,
    "DeleteAlias": WRITE,
    "DeleteFile": FILES,
    "DeleteJob": OWN,
    "DeleteModel": WRITE,
    "Embed": USED,
    "Generate": USED,
    "ExportModel": READ,
    "GetFile": FILES,
    "GetJob": OWN,
    "GetModel": READ,
    "GetServerInfo": "its own rights, limits and use",
    "ImportModel": WRITE,
    "LearnStream": f"{READ}, published as {WRITE}",
    "ListFiles": FILES,
    "ListJobs": OWN,
    "ListModels": READ,
    "PauseJob": OWN,
    "ReadFile": FILES,
    "ResumeJob": OWN,
    "Score": USED,
    "ScoreStream": USED,
    "SetAlias": WRITE,
    "Train": f"{WRITE}, from {READ} and corpora that it uploaded",
    "UploadFile": FILES,
    "WatchJob": OWN,
}
"""What each call is about, for callers who are no admins."""


def role_table() -> str:
    """Returns the table with its marks."""
    titles = [role.title for role in Role]
    rows = [
        f"| call | {' | '.join(titles)} | with |",
        f"|---|{'---|' * len(titles)}---|",
        f"| health checks, without a credential as well | {' | '.join(['yes'] * len(titles))} | |",
        f"| reflection | {' | '.join(['yes'] * len(titles))} | |",
    ]
    for method, least in sorted(PERMISSIONS.items(), key=lambda item: (item[1], item[0])):
        cells = ["yes" if role >= least else "-" for role in Role]
        rows.append(f"| `{method}` | {' | '.join(cells)} | {SCOPES[method]} |")
    return BEGIN + "\n" + "\n".join(rows) + "\n\n" + END


def written_table(page: str) -> str:
    """Returns the table that a page has, with its marks; '' without them."""
    found = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", page, re.DOTALL)
    return found[0] if found else ""


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.replace(written_table(text), role_table()), "utf-8")
