-- Vectors that may be computed anew at any time.

CREATE TABLE spaces (
    id     INTEGER PRIMARY KEY,
    digest BLOB    NOT NULL UNIQUE,
    model  TEXT    NOT NULL,
    dim    INTEGER NOT NULL
) STRICT;

CREATE TABLE entries (
    id       INTEGER PRIMARY KEY, -- half of the key
    half     INTEGER NOT NULL,    -- the other half
    space_id INTEGER NOT NULL,
    stored_s INTEGER NOT NULL,    -- both times are in seconds since 1970, UTC
    used_s   INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    vector   BLOB    NOT NULL     -- dim little-endian f16
) STRICT;
CREATE INDEX entries_by_use ON entries (used_s);
CREATE INDEX entries_by_age ON entries (stored_s, space_id);

-- What `entries` holds, so that nobody has to count.
CREATE TABLE held (
    entries INTEGER NOT NULL,
    bytes   INTEGER NOT NULL
) STRICT;
INSERT INTO held VALUES (0, 0);

-- Since the file was made, of every process that used it.
CREATE TABLE totals (
    level      INTEGER PRIMARY KEY, -- 0 memory, 1 disk
    hits       INTEGER NOT NULL,
    misses     INTEGER NOT NULL,
    insertions INTEGER NOT NULL,
    evictions  INTEGER NOT NULL,
    expired    INTEGER NOT NULL
) STRICT;
INSERT INTO totals VALUES (0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0);
