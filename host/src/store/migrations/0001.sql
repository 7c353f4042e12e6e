-- Records, their vectors and what an index has to know of both.

CREATE TABLE meta (
    database_id BLOB NOT NULL -- tells this database from one made anew at the same path
) STRICT;
INSERT INTO meta (database_id) VALUES (randomblob(16));

CREATE TABLE records (
    -- AUTOINCREMENT: an id is never used again, so no index can take a new record for an old one.
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    ulid           TEXT    NOT NULL UNIQUE,
    layer          INTEGER NOT NULL, -- 0 interact, 1 insights, 2 assets
    kind           TEXT    NOT NULL,
    project        TEXT    NOT NULL, -- '' where it belongs to none
    session        TEXT,
    created_ms     INTEGER NOT NULL, -- every time is in milliseconds since 1970, UTC
    last_access_ms INTEGER NOT NULL,
    access_count   INTEGER NOT NULL,
    importance     REAL    NOT NULL,
    score          REAL    NOT NULL,
    expires_ms     INTEGER,
    superseded_by  INTEGER,
    content_hash   BLOB    NOT NULL, -- BLAKE3 of title and text
    source_path    TEXT,
    line_start     INTEGER,
    line_end       INTEGER,
    title          TEXT,
    text           TEXT    NOT NULL
) STRICT;

-- Covers every filter but tags and source paths, so that a filter never reads the texts.
CREATE INDEX records_by_filter ON records (layer, project, kind, created_ms, expires_ms, session);
CREATE INDEX records_by_expiry ON records (expires_ms) WHERE expires_ms IS NOT NULL;
-- A record of no source is there once; a source may say the same thing twice.
CREATE UNIQUE INDEX records_by_content ON records (content_hash, layer, project) WHERE source_path IS NULL;
CREATE INDEX records_by_source ON records (source_path) WHERE source_path IS NOT NULL;

CREATE TABLE record_tags (
    record_id INTEGER NOT NULL,
    tag       TEXT    NOT NULL,
    PRIMARY KEY (record_id, tag)
) STRICT, WITHOUT ROWID;
CREATE INDEX record_tags_by_tag ON record_tags (tag);

CREATE TABLE spaces (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB    NOT NULL UNIQUE,
    model  TEXT    NOT NULL,
    dim    INTEGER NOT NULL
) STRICT;

-- A table with rowids: long rows are slow in one without.
CREATE TABLE vectors (
    space_id  INTEGER NOT NULL,
    layer     INTEGER NOT NULL, -- that of the record
    record_id INTEGER NOT NULL,
    vector    BLOB    NOT NULL, -- dim little-endian f16; empty where the text has no direction
    PRIMARY KEY (space_id, layer, record_id)
) STRICT;
-- Lets vectors be counted without reading them.
CREATE INDEX vectors_without_direction ON vectors (space_id, layer) WHERE length(vector) = 0;

-- A row says that the vector of the record came, changed or went; which of these, `vectors` tells.
CREATE TABLE changes (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    space_id  INTEGER NOT NULL,
    layer     INTEGER NOT NULL,
    record_id INTEGER NOT NULL
) STRICT;
CREATE INDEX changes_by_index ON changes (space_id, layer);

-- The last change that was dropped from the log.
CREATE TABLE pruned (
    space_id INTEGER NOT NULL,
    layer    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    PRIMARY KEY (space_id, layer)
) STRICT, WITHOUT ROWID;

CREATE TABLE sources (
    path         TEXT    PRIMARY KEY,
    content_hash BLOB    NOT NULL, -- of the whole file
    settings     BLOB    NOT NULL, -- digest of what else its records depend on
    size         INTEGER NOT NULL,
    mtime_ms     INTEGER NOT NULL,
    indexed_ms   INTEGER NOT NULL,
    project      TEXT    NOT NULL,
    layer        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Written beside `records`, not by triggers: before a statement that has one, FTS5 writes out its
-- buffer, so that every record would become a segment of its own.
CREATE VIRTUAL TABLE records_fts USING fts5 (
    title, text,
    content = 'records', content_rowid = 'id',
    tokenize = 'unicode61 remove_diacritics 2'
);
