use std::cmp::Reverse;
use std::iter;
use std::ops::{Range, RangeInclusive};

use super::outline::Break;

/// Marks that end a sentence if white space follows, and marks that end one by themselves.
const SENTENCE_ENDS: [char; 4] = ['.', '!', '?', '…'];
const WIDE_SENTENCE_ENDS: [char; 3] = ['。', '！', '？'];

/// Marks that may stand between the end of a sentence and the next one.
const CLOSING: [char; 11] = ['"', '\'', ')', ']', '*', '_', '”', '’', '»', '」', '』'];

/// How well a text breaks at a place, from worst to best. The best one, the start of a section, is
/// looked for by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    Char,
    Word,
    Sentence,
    Line,
    Paragraph,
    Block { depth: Reverse<usize>, after_blank_line: bool },
}

/// Cuts `text` into ranges of at most `max_chars` characters (1 or more), in order.
///
/// `breaks` are those of the text's outline. A piece ends where the next section starts, or else at
/// the strongest break that fits, of equals the last. Breaks that would make a piece smaller than a
/// quarter of `max_chars`, white space counted, or leave so little up to the next section, are
/// passed over. A piece starts with the indentation of its first line unless that is so long too,
/// and ends without white space. What is between the pieces is white space.
pub(super) fn cut<'a>(
    text: &'a str,
    breaks: &'a [Break],
    max_chars: usize,
) -> impl Iterator<Item = Range<usize>> + use<'a> {
    let text = text.trim_end();
    let mut cutter = Cutter { text, breaks, max_chars, small: max_chars / 4 };
    let mut offset = 0;
    iter::from_fn(move || {
        let visible = cutter.skip_white_space(offset);
        if visible == text.len() {
            return None;
        }
        let start = cutter.start_of_line(visible);
        let passed = cutter.breaks.iter().take_while(|next| next.at <= visible).count();
        cutter.breaks = &cutter.breaks[passed..];
        offset = cutter.end_of_piece(start, visible);
        Some(start..start + text[start..offset].trim_end().len())
    })
}

struct Cutter<'a> {
    /// Without white space at its end.
    text: &'a str,
    /// Those not yet passed.
    breaks: &'a [Break],
    max_chars: usize,
    /// A piece of fewer characters is joined to a neighbour if possible.
    small: usize,
}

impl Cutter<'_> {
    /// Where to end the piece that starts at `start` and has its first visible character at
    /// `visible`: an offset behind that.
    fn end_of_piece(&self, start: usize, visible: usize) -> usize {
        let earliest = self.forward(start, self.small);
        let limit = self.forward(start, self.max_chars);
        let all_fits = limit == self.text.len();
        // A piece loses the white space at its end, so a break behind that fits too.
        let reach = self.skip_white_space(limit);

        let (within, beyond) = self.breaks.split_at(self.breaks.partition_point(|next| next.at <= reach));
        let section = within.iter().find(|next| next.starts_section && next.at >= earliest);
        if let Some(section) = section
            && !(all_fits && self.forward(section.at, self.small) == self.text.len())
        {
            return section.at;
        }
        if all_fits {
            return limit;
        }

        let horizon = self.forward(limit, self.small);
        let next_section = beyond
            .iter()
            .take_while(|next| next.at < horizon)
            .find(|next| next.starts_section)
            .map_or(horizon, |next| next.at);
        let latest = self.skip_white_space(self.back(next_section, self.small).min(limit));
        self.strongest_break(visible, earliest..=latest, within)
    }

    /// The last of the strongest breaks in `range`; its end if there is none.
    fn strongest_break(&self, visible: usize, range: RangeInclusive<usize>, breaks: &[Break]) -> usize {
        let mut best = (Strength::Char, *range.end());
        let mut breaks = breaks.iter().peekable();
        // Of the text read last: its line ends and its last visible character but closing marks.
        let (mut white_space, mut line_ends, mut mark) = (false, 0, ' ');
        for (at, c) in self.text[visible..].char_indices().map(|(at, c)| (visible + at, c)) {
            if at > *range.end() {
                break;
            }
            if c.is_whitespace() {
                white_space = true;
                line_ends += usize::from(c == '\n');
                continue;
            }
            while breaks.next_if(|next| next.at < at).is_some() {}
            let strength = if let Some(block) = breaks.peek().filter(|next| next.at == at) {
                Strength::Block { depth: Reverse(block.depth), after_blank_line: line_ends > 1 }
            } else if line_ends > 1 {
                Strength::Paragraph
            } else if line_ends == 1 {
                Strength::Line
            } else if white_space && SENTENCE_ENDS.contains(&mark) || WIDE_SENTENCE_ENDS.contains(&mark) {
                Strength::Sentence
            } else if white_space {
                Strength::Word
            } else {
                Strength::Char
            };
            let closing = !white_space && CLOSING.contains(&c);
            if strength > Strength::Char && !closing && at > visible && at >= *range.start() {
                best = best.max((strength, at));
            }
            if !closing {
                mark = c;
            }
            (white_space, line_ends) = (false, 0);
        }
        best.1
    }

    /// Where the line of the character at `visible` starts, if white space is all that lies
    /// between and it is not too long to keep; else `visible`.
    fn start_of_line(&self, visible: usize) -> usize {
        let before = self.text[..visible].trim_end_matches(|c: char| c != '\n' && c.is_whitespace());
        let indentation = &self.text[before.len()..visible];
        let whole = before.is_empty() || before.ends_with('\n');
        if whole && indentation.chars().nth(self.small).is_none() { before.len() } else { visible }
    }

    fn skip_white_space(&self, offset: usize) -> usize {
        self.text.len() - self.text[offset..].trim_start().len()
    }

    /// The offset `chars` characters after `offset`, or the end of the text.
    fn forward(&self, offset: usize, chars: usize) -> usize {
        self.text[offset..].char_indices().nth(chars).map_or(self.text.len(), |(at, _)| offset + at)
    }

    /// The offset `chars` characters before `offset`, or 0.
    fn back(&self, offset: usize, chars: usize) -> usize {
        match chars.checked_sub(1) {
            Some(last) => self.text[..offset].char_indices().nth_back(last).map_or(0, |(at, _)| at),
            None => offset,
        }
    }
}
