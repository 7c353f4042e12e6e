//! The best that a cache could do, knowing the future.
use super::trace::Request;
use std::collections::{BinaryHeap, HashMap};

/// Never asked for again, or not held.
const NEVER: u32 = u32::MAX;

/// Requests that are answered, and their weight, where the entry goes that is asked for again last, and what
/// was just asked for is always held (Belady, 1966). No such cache answers more where all weigh the same;
/// where they do not, it is a good one and not the best, which nobody can compute. An entry that is too heavy
/// for the cache passes by it.
pub(super) fn belady(requests: &[Request], capacity: u64) -> (u64, u64) {
    // For each request, when its key is asked for again; and keys as numbers from 0.
    let mut numbers = HashMap::new();
    let ids: Vec<u32> = requests
        .iter()
        .map(|request| {
            let next = numbers.len() as u32;
            *numbers.entry(request.key).or_insert(next)
        })
        .collect();
    let mut next = vec![NEVER; requests.len()];
    let mut last = vec![NEVER; numbers.len()];
    for (at, &id) in ids.iter().enumerate().rev() {
        next[at] = std::mem::replace(&mut last[id as usize], at as u32);
    }
    // What is held, by weight and by its place in the heap, whose older places do not count any more.
    let mut held: Vec<Option<(u64, u32)>> = vec![None; numbers.len()];
    let mut heap = BinaryHeap::new();
    let (mut used, mut hits, mut hit_weight) = (0u64, 0, 0);
    for ((request, &id), &next) in requests.iter().zip(&ids).zip(&next) {
        if let Some((_, at)) = &mut held[id as usize] {
            *at = next;
            hits += 1;
            hit_weight += request.weight;
        } else if request.weight <= capacity {
            while used + request.weight > capacity
                && let Some((at, victim)) = heap.pop()
            {
                if let Some((weight, of)) = held[victim as usize]
                    && of == at
                {
                    held[victim as usize] = None;
                    used -= weight;
                }
            }
            held[id as usize] = Some((request.weight, next));
            used += request.weight;
        } else {
            continue;
        }
        heap.push((next, id));
    }
    (hits, hit_weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requests(keys: &[u64]) -> Vec<Request> {
        keys.iter().map(|&key| Request { key, weight: 1 }).collect()
    }

    /// The most hits of any choice of victims, by trying all.
    fn best(keys: &[u64], held: &mut Vec<u64>, capacity: usize) -> u64 {
        let Some((&key, rest)) = keys.split_first() else { return 0 };
        if held.contains(&key) {
            return 1 + best(rest, held, capacity);
        }
        if held.len() < capacity {
            held.push(key);
            let most = best(rest, held, capacity);
            held.pop();
            return most;
        }
        (0..capacity)
            .map(|at| {
                let victim = std::mem::replace(&mut held[at], key);
                let most = best(rest, held, capacity);
                held[at] = victim;
                most
            })
            .max()
            .unwrap_or(0)
    }

    proptest! {
        #[test]
        fn no_choice_answers_more(keys in prop::collection::vec(0u64..6, 0..12), capacity in 1usize..4) {
            prop_assert_eq!(belady(&requests(&keys), capacity as u64).0, best(&keys, &mut vec![], capacity));
        }
    }

    #[test]
    fn weights_count() {
        let of = |list: &[(u64, u64)], capacity| {
            belady(&list.iter().map(|&(key, weight)| Request { key, weight }).collect::<Vec<_>>(), capacity)
        };
        assert_eq!(of(&[(1, 5), (2, 5), (1, 5), (2, 5)], 10), (2, 10));
        assert_eq!(of(&[(1, 5), (2, 50), (1, 5), (2, 50)], 10), (1, 5));
        assert_eq!(of(&[(1, 5), (2, 3), (3, 5), (2, 3), (1, 5)], 8), (1, 3));
    }
}
