-- How often a record that was there got another text, so that who keeps what follows from the texts, as their lengths,
-- knows when that is over.
ALTER TABLE meta ADD COLUMN texts_changed INTEGER NOT NULL DEFAULT 0;
