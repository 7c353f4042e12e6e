-- Since when and until when a record is true; NULL where that is not known. A record that was replaced is true
-- until its successor is.
ALTER TABLE records ADD COLUMN valid_from_ms INTEGER;
ALTER TABLE records ADD COLUMN valid_to_ms INTEGER;
UPDATE records SET valid_to_ms = coalesce(
    (SELECT created_ms FROM records AS better WHERE better.id = records.superseded_by), last_access_ms)
WHERE superseded_by IS NOT NULL;
CREATE INDEX records_by_validity ON records (valid_from_ms, valid_to_ms)
    WHERE valid_from_ms IS NOT NULL OR valid_to_ms IS NOT NULL;
-- Covers every filter but tags and source paths, as before.
DROP INDEX records_by_filter;
CREATE INDEX records_by_filter ON records
    (layer, project, kind, created_ms, expires_ms, session, valid_from_ms, valid_to_ms);

-- The keyword index holds terms, as `terms.rs` makes them of titles and texts, one space between two; it keeps no
-- text of its own. What is stored already is entered by `schema.rs`, for SQL cannot analyse a text.
DROP TABLE records_fts;
CREATE VIRTUAL TABLE records_fts USING fts5 (
    title, text,
    content = '', contentless_delete = 1,
    tokenize = 'ascii'
);
