-- The last look-ups by searches, in parts, the newest with the highest id.
CREATE TABLE IF NOT EXISTS lookups (
    id       INTEGER PRIMARY KEY,
    asked    INTEGER NOT NULL,
    answered INTEGER NOT NULL
) STRICT;
