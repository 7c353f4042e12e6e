-- What makes sure that two backends of a space compute the same.

CREATE TABLE parity_references (
    space_id  INTEGER PRIMARY KEY,
    backend   TEXT    NOT NULL, -- profile of the first backend of the space, for messages
    precision TEXT    NOT NULL, -- that it computed in
    probes    BLOB    NOT NULL, -- digest of the texts
    vectors   BLOB    NOT NULL  -- those of the texts, little-endian f32, one after the other
) STRICT;

-- Backends that agree with the reference.
CREATE TABLE parity_verdicts (
    space_id INTEGER NOT NULL,
    backend  BLOB    NOT NULL, -- digest of all that decides how it computes
    cosine   REAL    NOT NULL, -- the least over the texts
    PRIMARY KEY (space_id, backend)
) STRICT, WITHOUT ROWID;
