-- The model that answers, and the one before it. Without a row the configuration says which.
CREATE TABLE active_models (
    place    INTEGER PRIMARY KEY CHECK (place IN (0, 1)), -- 0 answers, 1 did before
    profile  TEXT    NOT NULL, -- embedding profile that runs it
    model    TEXT    NOT NULL, -- as `model_name` in the configuration
    space_id INTEGER NOT NULL
) STRICT;
