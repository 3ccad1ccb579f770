-- What several servers need that share one database. A server with a database of its own leaves the
-- columns at their defaults and the tables empty.
ALTER TABLE jobs ADD holder TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD fence INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD lease_until_s REAL NOT NULL DEFAULT 0.0;
ALTER TABLE jobs ADD request TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD checkpoint TEXT NOT NULL DEFAULT '';
CREATE TABLE versions (
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    created_s REAL NOT NULL,
    description BLOB NOT NULL,
    PRIMARY KEY (model, version)
) WITHOUT ROWID;
CREATE TABLE replicas (
    id TEXT NOT NULL PRIMARY KEY,
    address TEXT NOT NULL,
    started_s REAL NOT NULL,
    seen_s REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE duties (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    until_s REAL NOT NULL
) WITHOUT ROWID;
