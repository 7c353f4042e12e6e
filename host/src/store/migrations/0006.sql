-- How often a record that was there got another text, so that who keeps what follows from the texts, as their lengths,
-- knows when that is over.
ALTER TABLE meta ADD COLUMN texts_changed INTEGER NOT NULL DEFAULT 0;

-- All of a standing, which a search asks for of some hundred candidates, without the pages of their texts.
CREATE INDEX records_standing ON records
    (id, layer, project, session, source_path, created_ms, last_access_ms, access_count);
