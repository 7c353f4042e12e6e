use magray_plugin_api::{Error, ErrorCode, Result};
use std::collections::HashMap;

/// Pieces up to this many bytes are looked up by their bytes in one register.
pub(super) const SHORT: usize = 16;

/// The pieces of a WordPiece vocabulary by their bytes.
pub(super) struct Vocab {
    /// Of each id: the bytes of its piece, without `##`, little-endian, zero-padded; 0 where the
    /// piece is longer than [`SHORT`].
    keys: Vec<u128>,
    /// Pieces that start a word.
    starts: Pieces,
    /// Pieces that go on with one (`##`).
    continuations: Pieces,
    /// What a word becomes that cannot be spelled.
    unknown: Option<u32>,
}

/// The pieces of one kind.
struct Pieces {
    /// A hash table with linear probing: `tag << ID_BITS | id`, or [`EMPTY`]. The tag tells most
    /// other pieces apart without a look at their keys.
    slots: Box<[u32]>,
    /// Hash bits to shift out to get a slot.
    shift: u32,
    /// By a hash of the first [`PREFIX`] bytes: the lengths that pieces with these bytes have, bit
    /// `n - 1` for the length `n`. It spares most of the probes where a word is several pieces.
    lengths: Box<[u16]>,
    /// The pieces longer than [`SHORT`].
    long: HashMap<Box<[u8]>, u32>,
    /// Bytes of the longest piece.
    longest: usize,
}

const ID_BITS: u32 = 20;
const ID_MASK: u32 = (1 << ID_BITS) - 1;
const EMPTY: u32 = u32::MAX;
/// No vocabulary holds this id, so no full slot looks like [`EMPTY`].
const MAX_PIECES: usize = ID_MASK as usize;

/// What the pieces are grouped by, to know their lengths.
const PREFIX: usize = 3;
const PREFIX_BITS: u32 = 13;
/// The lengths below [`PREFIX`], which are always tried.
const BELOW_PREFIX: u16 = (1 << (PREFIX - 1)) - 1;

impl Vocab {
    /// Takes the pieces in the order of their ids.
    ///
    /// # Errors
    /// `CORRUPT_DATA` for a piece that stands there twice, `UNSUPPORTED` for too many pieces.
    pub(super) fn new(pieces: &[&str], unknown: Option<u32>) -> Result<Self> {
        if pieces.len() > MAX_PIECES {
            return Err(Error::new(
                ErrorCode::UNSUPPORTED,
                format!("the vocabulary has {} pieces; {MAX_PIECES} are possible", pieces.len()),
            ));
        }
        let continuations = pieces.iter().filter(|piece| piece.starts_with("##")).count();
        let mut vocab = Self {
            keys: vec![0; pieces.len()],
            starts: Pieces::with_room(pieces.len() - continuations),
            continuations: Pieces::with_room(continuations),
            unknown,
        };
        for (id, piece) in (0..).zip(pieces) {
            let (table, bytes) = match piece.strip_prefix("##") {
                Some(rest) => (&mut vocab.continuations, rest.as_bytes()),
                None => (&mut vocab.starts, piece.as_bytes()),
            };
            // A text never holds NUL once it is clean, so these match nothing.
            if bytes.is_empty() || bytes.contains(&0) {
                continue;
            }
            let held = if bytes.len() <= SHORT {
                let key = window(bytes);
                vocab.keys[id as usize] = key;
                table.lengths[prefix_slot(key)] |= 1 << (bytes.len() - 1);
                table.insert(&vocab.keys, key, id)
            } else {
                table.long.insert(bytes.into(), id)
            };
            if let Some(held) = held {
                return Err(Error::new(
                    ErrorCode::CORRUPT_DATA,
                    format!("the vocabulary has the piece '{piece}' twice, as {held} and {id}"),
                ));
            }
            table.longest = table.longest.max(bytes.len());
        }
        Ok(vocab)
    }

    /// Appends the ids of `word` (normalised, not empty), by the longest piece that fits, again and
    /// again; the unknown piece, if any, where none fits.
    pub(super) fn spell(&self, word: &[u8], ids: &mut Vec<u32>) {
        let (word_ids, mut rest, mut table) = (ids.len(), word, &self.starts);
        while rest.len() > SHORT {
            let Some((id, len)) = self.longest_prefix(table, rest) else {
                return self.give_up(word_ids, ids);
            };
            ids.push(id);
            rest = &rest[len..];
            table = &self.continuations;
        }
        if !rest.is_empty() && !self.spell_rest(table, window(rest), rest.len(), ids) {
            self.give_up(word_ids, ids);
        }
    }

    /// Replaces the ids from `word_ids` on by the unknown piece, if any.
    #[cold]
    fn give_up(&self, word_ids: usize, ids: &mut Vec<u32>) {
        ids.truncate(word_ids);
        self.add_unknown(ids);
    }

    /// Appends the unknown piece, if any.
    pub(super) fn add_unknown(&self, ids: &mut Vec<u32>) {
        ids.extend(self.unknown);
    }

    /// [`Vocab::spell`] of a word of `len` bytes, at most [`SHORT`], that `key` holds.
    #[inline]
    pub(super) fn spell_short(&self, key: u128, len: usize, ids: &mut Vec<u32>) {
        // Most words are one piece.
        if let Some(id) = self.starts.find(&self.keys, key) {
            return ids.push(id);
        }
        let word_ids = ids.len();
        if !self.spell_rest(&self.starts, key, len, ids) {
            self.give_up(word_ids, ids);
        }
    }

    /// Whether the last `len` bytes of a word, which `key` holds, could be spelled.
    fn spell_rest<'a>(
        &'a self,
        mut table: &'a Pieces,
        mut key: u128,
        mut len: usize,
        ids: &mut Vec<u32>,
    ) -> bool {
        while len > 0 {
            let Some((id, piece)) = self.longest_short_prefix(table, key, len) else { return false };
            ids.push(id);
            if piece == len {
                break;
            }
            key >>= 8 * piece;
            len -= piece;
            table = &self.continuations;
        }
        true
    }

    fn longest_prefix(&self, table: &Pieces, rest: &[u8]) -> Option<(u32, usize)> {
        let lengths = SHORT + 1..=rest.len().min(table.longest);
        let long = lengths.rev().find_map(|len| Some((*table.long.get(&rest[..len])?, len)));
        long.or_else(|| self.longest_short_prefix(table, window(rest), SHORT))
    }

    #[inline]
    fn longest_short_prefix(&self, table: &Pieces, key: u128, len: usize) -> Option<(u32, usize)> {
        // A piece is whole characters, so a prefix that equals one ends at a character.
        let mut lengths = (table.lengths[prefix_slot(key)] | BELOW_PREFIX) & (u16::MAX >> (SHORT - len));
        while lengths != 0 {
            let longest = lengths.ilog2();
            let len = longest as usize + 1;
            if let Some(id) = table.find(&self.keys, first_bytes(key, len)) {
                return Some((id, len));
            }
            lengths ^= 1 << longest;
        }
        None
    }

    /// Bytes of memory that the tables take.
    pub(super) fn memory(&self) -> usize {
        let tables = [&self.starts, &self.continuations];
        let tables = tables.map(|table| size_of_val(&*table.slots) + size_of_val(&*table.lengths));
        size_of_val(&*self.keys) + tables.iter().sum::<usize>()
    }
}

impl Pieces {
    fn with_room(pieces: usize) -> Self {
        let slots = (pieces * 2).next_power_of_two().max(2);
        Self {
            slots: vec![EMPTY; slots].into(),
            shift: u64::BITS - slots.ilog2(),
            lengths: vec![0; 1 << PREFIX_BITS].into(),
            long: HashMap::new(),
            longest: 0,
        }
    }

    #[inline]
    fn find(&self, keys: &[u128], key: u128) -> Option<u32> {
        let hash = hash(key);
        let mut at = (hash >> self.shift) as usize;
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return None;
            }
            let id = slot & ID_MASK;
            if slot >> ID_BITS == tag(hash) && keys[id as usize] == key {
                return Some(id);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// The id that holds the key already, else nothing.
    fn insert(&mut self, keys: &[u128], key: u128, id: u32) -> Option<u32> {
        let held = self.find(keys, key);
        if held.is_none() {
            let hash = hash(key);
            let mut at = (hash >> self.shift) as usize;
            while self.slots[at] != EMPTY {
                at = (at + 1) & (self.slots.len() - 1);
            }
            self.slots[at] = tag(hash) << ID_BITS | id;
        }
        held
    }
}

/// The first [`SHORT`] bytes of `bytes`, little-endian, zero-padded.
#[inline]
pub(super) fn window(bytes: &[u8]) -> u128 {
    match bytes.first_chunk() {
        Some(&chunk) => u128::from_le_bytes(chunk),
        None => {
            let mut chunk = [0; SHORT];
            chunk[..bytes.len()].copy_from_slice(bytes);
            u128::from_le_bytes(chunk)
        }
    }
}

/// The first `len` bytes of `key`, with 1 <= `len` <= [`SHORT`].
#[inline]
pub(super) fn first_bytes(key: u128, len: usize) -> u128 {
    key & (u128::MAX >> (8 * (SHORT - len)))
}

/// The folded multiplication of wyhash. The high bits choose the slot, the low ones are the tag.
#[inline]
fn hash(key: u128) -> u64 {
    let (low, high) = (key as u64, (key >> 64) as u64);
    let product = u128::from(low ^ 0xa076_1d64_78bd_642f) * u128::from(high ^ 0xe703_7ed1_a0b4_28db);
    product as u64 ^ (product >> 64) as u64
}

#[inline]
fn prefix_slot(key: u128) -> usize {
    let prefix = first_bytes(key, PREFIX) as u32;
    (prefix.wrapping_mul(0x9e37_79b1) >> (u32::BITS - PREFIX_BITS)) as usize
}

#[inline]
fn tag(hash: u64) -> u32 {
    hash as u32 & (u32::MAX >> ID_BITS)
}
