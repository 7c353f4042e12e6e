//! Requests that wait, and how batches are cut from them.
use super::batch::{Batch, Request};
use magray_plugin_api::Role;
use std::{collections::VecDeque, sync::Arc};

/// Requests of one urgency, the oldest first.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Waiting>,
    /// Texts that are in no batch yet.
    pub(super) texts: usize,
    /// Bytes of the requests.
    pub(super) bytes: usize,
}

/// A request of which some texts are in no batch yet.
pub(super) struct Waiting {
    pub(super) request: Arc<Request>,
    /// Tokens of each text; empty where nobody needs to know.
    pub(super) tokens: Vec<u32>,
    /// The texts that are left, the shortest first.
    pub(super) rest: Vec<u32>,
}

impl Waiting {
    pub(super) fn new(request: Arc<Request>, tokens: Vec<u32>) -> Self {
        let mut rest: Vec<u32> = (0..).take(request.texts.len()).collect();
        rest.sort_by_key(|&row| tokens.get(row as usize));
        Self { request, tokens, rest }
    }

    /// Tokens of a text, at least 1.
    fn tokens(&self, row: u32) -> usize {
        self.tokens.get(row as usize).map_or(1, |&tokens| (tokens as usize).max(1))
    }

    /// Takes up to `room` texts, the longest first, none longer than `longest`.
    fn take(&mut self, room: usize, longest: usize) -> Vec<u32> {
        let fitting = self.rest.partition_point(|&row| self.tokens(row) <= longest);
        self.rest.drain(fitting.saturating_sub(room)..fitting).collect()
    }
}

/// What fits into a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) texts: usize,
    pub(super) tokens: usize,
}

impl Queue {
    pub(super) fn oldest(&self) -> Option<&Arc<Request>> {
        self.waiting.front().map(|waiting| &waiting.request)
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.texts += waiting.rest.len();
        self.bytes += waiting.request.texts.bytes();
        self.waiting.push_back(waiting);
    }

    pub(super) fn forget(&mut self, request: &Arc<Request>) {
        let at = self.waiting.iter().position(|waiting| Arc::ptr_eq(&waiting.request, request));
        if let Some(waiting) = at.and_then(|at| self.waiting.remove(at)) {
            self.texts -= waiting.rest.len();
            self.bytes -= request.texts.bytes();
        }
    }

    /// How many texts the next batch takes at most, and how long they are: as the longest of the oldest request.
    fn next_batch(&self, room: Room) -> Option<(Role, usize, usize)> {
        let oldest = self.waiting.front()?;
        let longest = oldest.rest.last().map_or(1, |&row| oldest.tokens(row));
        Some((oldest.request.role, (room.tokens / longest).clamp(1, room.texts), longest))
    }

    /// Whether the next batch will be full.
    pub(super) fn is_full(&self, room: Room) -> bool {
        self.next_batch(room).is_some_and(|(role, size, _)| {
            let alike = self.waiting.iter().filter(|waiting| waiting.request.role == role);
            alike.map(|waiting| waiting.rest.len()).sum::<usize>() >= size
        })
    }

    /// Cuts a batch of texts of like length: the longest that the oldest request has, and what fits beside it.
    pub(super) fn cut(&mut self, room: Room) -> Option<Batch> {
        let (role, mut left, longest) = self.next_batch(room)?;
        let mut parts = Vec::new();
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.request.role == role) {
            let rows = waiting.take(left, longest);
            left -= rows.len();
            self.texts -= rows.len();
            if waiting.rest.is_empty() {
                self.bytes -= waiting.request.texts.bytes();
            }
            if !rows.is_empty() {
                parts.push((waiting.request.clone(), rows));
            }
            if left == 0 {
                break;
            }
        }
        self.waiting.retain(|waiting| !waiting.rest.is_empty());
        Some(Batch { role, parts })
    }
}
