-- -1: of a job from before the column, so that its version is unknown.
ALTER TABLE jobs ADD init_from_version INTEGER NOT NULL DEFAULT -1;
