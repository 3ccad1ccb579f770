-- What belongs to which caller.
ALTER TABLE jobs ADD owner TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD call_id TEXT NOT NULL DEFAULT '';
DROP INDEX jobs_request;
-- The length makes no difference to what is unique. By it, `Salvage` distinguishes the index from a
-- table.
CREATE UNIQUE INDEX jobs_request ON jobs (request_id, length(request_id), owner)
    WHERE request_id != '';
CREATE INDEX jobs_owner ON jobs (owner, created_s, id);
CREATE TABLE corpus_owners (
    sha256 TEXT NOT NULL,
    owner TEXT NOT NULL,
    size INTEGER NOT NULL,
    used_s REAL NOT NULL,
    PRIMARY KEY (sha256, owner)
) WITHOUT ROWID;
CREATE TABLE version_owners (
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    owner TEXT NOT NULL,
    size INTEGER NOT NULL,
    created_s REAL NOT NULL,
    PRIMARY KEY (model, version)
) WITHOUT ROWID;
