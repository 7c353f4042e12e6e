use std::path::Path;

/// How many bytes are free below `dir`, where a write of `needed` bytes would leave less than `reserve`; none where
/// there is room. Where `reserve` is 0, the disk itself says when it is full, as does a system that does not say how
/// much there is.
pub(crate) fn free_where_short(dir: &Path, needed: u64, reserve: u64) -> Option<u64> {
    let free = fs4::available_space(dir).ok()?;
    (reserve > 0 && needed.saturating_add(reserve) > free).then_some(free)
}
