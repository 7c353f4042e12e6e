use magray_plugin_api::ComponentKind::{self, CachePolicy, Embedder, Index};
use serde::Deserialize;

/// Defines [`Fault`] and [`FAULTS`]: what is broken, in which kind, and the check that finds it.
macro_rules! faults {
    ($($(#[$of:meta])* $fault:ident, $name:literal: $($kind:ident $check:literal),+;)*) => {
        /// What a component does wrong.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Fault {
            #[default]
            None,
            /// Not faults: an index of one metric, an embedder of a model that judges pairs.
            DoesOnlyL2,
            JudgesPairs,
            $($fault,)*
        }

        /// The kind, the fault as the option names it, and the check that is meant for it.
        pub const FAULTS: &[(ComponentKind, &str, &str)] = &[$($(($kind, $name, $check),)+)*];
    };
}

faults! {
    FailsToStart, "fails_to_start": Embedder "creates", Index "creates", CachePolicy "creates";
    TakesAnyOption, "takes_any_option": Embedder "refuses-unknown-options", Index "refuses-unknown-options",
        CachePolicy "refuses-unknown-options";
    IsSick, "is_sick": Embedder "healthy", Index "healthy";
    DescribesBadly, "describes_badly": Embedder "describes-itself", Index "describes-itself",
        CachePolicy "describes-itself";
    TunesAnything, "tunes_anything": Embedder "refuses-unknown-tuning", Index "refuses-unknown-tuning",
        CachePolicy "refuses-unknown-tuning";
    FailsToWarmUp, "fails_to_warm_up": Embedder "warms-up", Index "warms-up";
    IgnoresCancel, "ignores_cancel": Embedder "cancels", Embedder "keeps-deadline", Index "cancels",
        Index "keeps-deadline";
    NeverAsks, "never_asks": Embedder "asks-while-it-works", Index "asks-while-it-works";
    Leaks, "leaks": Embedder "memory-stays", Index "memory-stays", CachePolicy "memory-stays";
    RefusesEmptyCalls, "refuses_empty_calls": Embedder "empty-batch", Index "empty-calls";
    Wavers, "wavers": Embedder "deterministic", Index "deterministic";
    TakesAnyLength, "takes_any_length": Embedder "refuses-wrong-length", Index "refuses-wrong-length";
    HatesChance, "hates_chance": Embedder "fuzz", Index "fuzz", CachePolicy "fuzz";
    Aborts, "aborts": Embedder "unit-vectors", Index "finds-itself", CachePolicy "evicts-enough";
    Hangs, "hangs": Embedder "unit-vectors", Index "finds-itself", CachePolicy "evicts-enough";
    EatsMemory, "eats_memory": Embedder "unit-vectors", Index "finds-itself", CachePolicy "evicts-enough";

    SaysNothing, "says_nothing": Embedder "says-what-it-is";
    NamesNoDevice, "names_no_device": Embedder "names-its-device";
    LeavesLastNumber, "leaves_last_number": Embedder "writes-every-number";
    NotNormalised, "not_normalised": Embedder "unit-vectors";
    OneVector, "one_vector": Embedder "tells-texts-apart";
    SeesNeighbours, "sees_neighbours": Embedder "batch-independent";
    RefusesQueries, "refuses_queries": Embedder "both-roles";
    TakesTooMany, "takes_too_many": Embedder "largest-batch";
    FailsWhenBusy, "fails_when_busy": Embedder "concurrent";
    CountsOneMore, "counts_one_more": Embedder "counts-tokens";
    CountsAnyLength, "counts_any_length": Embedder "count-refuses-wrong-length";
    ScoresNeighbours, "scores_neighbours": Embedder "judges-pairs";
    ScoresAnyLength, "scores_any_length": Embedder "rerank-refuses-wrong-length";
    RanksWhenCancelled, "ranks_when_cancelled": Embedder "rerank-cancels";
    PanicsOnEmpty, "panics_on_empty": Embedder "takes-any-text";

    OtherSpec, "other_spec": Index "gives-its-spec";
    ForgetsNearest, "forgets_nearest": Index "finds-itself", Index "recall-cosine", Index "recall-dot",
        Index "recall-l2";
    WorstFirst, "worst_first": Index "best-first";
    NoPadding, "no_padding": Index "pads-with-none";
    FailsWhenEmpty, "fails_when_empty": Index "empty-index";
    KeepsFirst, "keeps_first": Index "replaces";
    FirstOfOneIdCounts, "first_of_one_id_counts": Index "last-of-one-id-counts";
    KeepsRemoved, "keeps_removed": Index "removes", CachePolicy "forgets-removed",
        CachePolicy "agrees-with-model";
    CountsDead, "counts_dead": Index "counts-live";
    RefusesLargeIds, "refuses_large_ids": Index "any-id";
    TakesReservedId, "takes_reserved_id": Index "refuses-reserved-id";
    StoresBeforeChecking, "stores_before_checking": Index "refuses-not-finite";
    TakesZero, "takes_zero": Index "refuses-zero-under-cosine";
    MergesEqual, "merges_equal": Index "equal-vectors";
    HidesWhileWriting, "hides_while_writing": Index "reads-while-writing";
    HalvesCosine, "halves_cosine": Index "scores-cosine";
    NegatesDot, "negates_dot": Index "scores-dot";
    NegatesL2, "negates_l2": Index "scores-l2";
    Overflows, "overflows": Index "cosine-of-any-length", CachePolicy "takes-any-weight";
    ForgetsTail, "forgets_tail": Index "any-width";
    FirstQueryOnly, "first_query_only": Index "batches";
    IgnoresBitmap, "ignores_bitmap": Index "filters-by-bitmap";
    IgnoresList, "ignores_list": Index "filters-by-list";
    IgnoresEmptyFilter, "ignores_empty_filter": Index "filters-all";
    RefusesZero, "refuses_zero": Index "takes-zero";
    CountsUnknownRemovals, "counts_unknown_removals": Index "agrees-with-model";
    SavesRemoved, "saves_removed": Index "saves-and-opens", Index "agrees-when-reopened";
    RefusesEmptyFile, "refuses_empty_file": Index "opens-empty";
    OpensReadOnly, "opens_read_only": Index "opened-is-writable";
    ReadsLate, "reads_late": Index "outlives-its-files";
    OpensAnySpec, "opens_any_spec": Index "refuses-other-spec";
    OpensNothing, "opens_nothing": Index "refuses-missing-files";
    IgnoresTruncation, "ignores_truncation": Index "refuses-truncated-files";
    PanicsOnDamage, "panics_on_damage": Index "survives-damaged-files";

    EvictsTooLittle, "evicts_too_little": CachePolicy "evicts-enough";
    NamesTwice, "names_twice": CachePolicy "evicts-only-held-keys";
    KeepsOne, "keeps_one": CachePolicy "evicts-everything";
    NamesGhosts, "names_ghosts": CachePolicy "evicts-nothing-from-empty";
    DropsFresh, "drops_fresh": CachePolicy "keeps-what-is-fresh";
    KeepsVictims, "keeps_victims": CachePolicy "forgets-victims";
    KeepsOldWeight, "keeps_old_weight": CachePolicy "replaces";
    AdoptsUnknown, "adopts_unknown": CachePolicy "ignores-unknown-keys";
    HatesLeaps, "hates_leaps": CachePolicy "takes-any-time";
    HatesCapacity, "hates_capacity": CachePolicy "obeys-capacity-changes";
    // Over the boundary the victims come in a list of their own, so only a type can do this.
    ClearsVictims, "clears_victims": CachePolicy "appends-victims";
}
