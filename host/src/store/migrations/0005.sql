-- Promotion: what moved between the layers and why, and what the next cycle has to look at.

-- The accesses that a cycle has weighed.
ALTER TABLE records ADD COLUMN weighed_count INTEGER NOT NULL DEFAULT 0;
-- The accesses when the record came to its layer, the uses that it brought along, and when that was;
-- nothing, none and NULL where it was made there.
ALTER TABLE records ADD COLUMN moved_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE records ADD COLUMN carried REAL NOT NULL DEFAULT 0;
ALTER TABLE records ADD COLUMN moved_ms INTEGER;

-- What was used since it was weighed, and may move: a cycle reads nothing else.
CREATE INDEX records_to_weigh ON records (layer)
WHERE access_count <> weighed_count AND layer < 2 AND source_path IS NULL AND superseded_by IS NULL;
-- What is used in a project, the last of it first.
CREATE INDEX records_by_use ON records (project, last_access_ms) WHERE access_count > 0;

-- When a cycle last wrote, and the digest of the settings that it went by.
CREATE TABLE promotion_state (
    place     INTEGER PRIMARY KEY CHECK (place = 0),
    cycled_ms INTEGER NOT NULL,
    settings  BLOB    NOT NULL
) STRICT;

CREATE TABLE promotion_cycles (
    id    INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again
    at_ms INTEGER NOT NULL
) STRICT;

-- Each move, with all that it takes to explain it and to take it back.
CREATE TABLE promotions (
    id                 INTEGER PRIMARY KEY,
    cycle_id           INTEGER NOT NULL,
    record_id          INTEGER NOT NULL,
    ulid               TEXT    NOT NULL, -- the record may be gone
    from_layer         INTEGER NOT NULL,
    to_layer           INTEGER NOT NULL,
    score              REAL    NOT NULL,
    recency            REAL    NOT NULL, -- the parts of the score
    frequency          REAL    NOT NULL,
    importance         REAL    NOT NULL,
    similarity         REAL,
    threshold          REAL,             -- NULL where it was moved by hand
    expires_ms         INTEGER,          -- that the move gave it
    former_expires_ms  INTEGER,
    former_score       REAL    NOT NULL,
    former_moved_count INTEGER NOT NULL,
    former_carried     REAL    NOT NULL,
    former_moved_ms    INTEGER,
    merged             TEXT,             -- JSON: the record that it was merged into, before and after
    undone_ms          INTEGER
) STRICT;
CREATE INDEX promotions_by_cycle ON promotions (cycle_id);
