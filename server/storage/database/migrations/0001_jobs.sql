-- Jobs with their events, aliases of versions, and when corpora were used last.
CREATE TABLE jobs (
    id TEXT NOT NULL,
    model TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    spec BLOB NOT NULL,
    config TEXT NOT NULL,
    files TEXT NOT NULL,
    corpus_bytes INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    init_from TEXT NOT NULL,
    created_s REAL NOT NULL,
    queued_s REAL NOT NULL,
    started_s REAL,
    ended_s REAL,
    last_sequence INTEGER NOT NULL,
    restarts INTEGER NOT NULL,
    started BLOB NOT NULL,
    progress BLOB NOT NULL,
    version INTEGER NOT NULL,
    claim INTEGER NOT NULL,
    error_code INTEGER NOT NULL,
    error BLOB NOT NULL,
    ran_s REAL NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX jobs_created ON jobs (created_s, id);
CREATE INDEX jobs_queued ON jobs (state, queued_s, id);
CREATE UNIQUE INDEX jobs_request ON jobs (request_id) WHERE request_id != '';
CREATE TABLE events (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    time_s REAL NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (job, sequence)
) WITHOUT ROWID;
CREATE TABLE aliases (
    model TEXT NOT NULL,
    alias TEXT NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (model, alias)
) WITHOUT ROWID;
CREATE TABLE corpora (
    sha256 TEXT NOT NULL PRIMARY KEY,
    size INTEGER NOT NULL,
    used_s REAL NOT NULL
) WITHOUT ROWID;
