//! Types of single values, each with the words in which a message says what it must be.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, ops::RangeInclusive, path::Path, path::PathBuf, str::FromStr, time::Duration};

/// A whole number from `MIN` to `MAX`; `i64::MAX` means no upper limit.
pub(super) fn whole<'de, const MIN: i64, const MAX: i64, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: TryFrom<i64>,
    D: Deserializer<'de>,
{
    struct Whole<T, const MIN: i64, const MAX: i64>(std::marker::PhantomData<T>);

    impl<T: TryFrom<i64>, const MIN: i64, const MAX: i64> de::Visitor<'_> for Whole<T, MIN, MAX> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match MAX {
                i64::MAX => write!(f, "a whole number of {MIN} or more"),
                _ => write!(f, "a whole number from {MIN} to {MAX}"),
            }
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
            let valid = (MIN..=MAX).contains(&number).then(|| T::try_from(number).ok()).flatten();
            valid.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
        }
    }

    deserializer.deserialize_i64(Whole::<T, MIN, MAX>(std::marker::PhantomData))
}

/// A number from 0 to 1.
pub(super) fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    deserializer.deserialize_any(Number { what: "a number from 0 to 1", range: 0.0..=1.0 })
}

/// A number from 1 to 10.
pub(super) fn factor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    deserializer.deserialize_any(Number { what: "a number from 1 to 10", range: 1.0..=10.0 })
}

struct Number {
    what: &'static str,
    range: RangeInclusive<f64>,
}

impl de::Visitor<'_> for Number {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<f64, E> {
        if self.range.contains(&number) {
            Ok(number)
        } else {
            Err(E::invalid_value(de::Unexpected::Float(number), &self))
        }
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<f64, E> {
        self.visit_f64(number as f64)
    }
}

/// Four numbers from 0.1 to 10, none above the one before it.
pub(super) fn factors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[f64; 4], D::Error> {
    let fits = |row: &[f64; 4]| {
        row.iter().all(|number| (0.1..=10.0).contains(number)) && row.is_sorted_by(|a, b| a >= b)
    };
    deserializer
        .deserialize_any(Row { what: "four numbers from 0.1 to 10, none above the one before it", fits })
}

/// Three percentages, each above the one before it.
pub(super) fn percents<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 3], D::Error> {
    let fits =
        |row: &[u8; 3]| row.iter().all(|number| (1..=100).contains(number)) && row.is_sorted_by(|a, b| a < b);
    let what = "three whole numbers from 1 to 100, each above the one before it";
    deserializer.deserialize_any(Row { what, fits })
}

/// A list of so many numbers that fit together.
struct Row<T, const N: usize> {
    what: &'static str,
    fits: fn(&[T; N]) -> bool,
}

impl<'de, T: Deserialize<'de>, const N: usize> de::Visitor<'de> for Row<T, N> {
    type Value = [T; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<[T; N], A::Error> {
        let mut row = Vec::with_capacity(N);
        // One that is no number ends it too short.
        while let Ok(Some(number)) = list.next_element() {
            row.push(number);
        }
        let row = <[T; N]>::try_from(row).ok().filter(|row| (self.fits)(row));
        row.ok_or_else(|| de::Error::custom(self.what))
    }
}

/// A string that [`FromStr`] reads; `expecting` says what it must be.
fn parsed<'de, T, D>(deserializer: D, expecting: &'static str) -> Result<T, D::Error>
where
    T: FromStr,
    D: Deserializer<'de>,
{
    struct Parsed<T>(&'static str, std::marker::PhantomData<T>);

    impl<T: FromStr> de::Visitor<'_> for Parsed<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_str(Parsed(expecting, std::marker::PhantomData))
}

/// The value is not one of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfit;

/// A name that is not empty.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Name(String);

    impl FromStr for Name {
        type Err = Unfit;

        fn from_str(text: &str) -> Result<Self, Unfit> {
            if text.trim().is_empty() { Err(Unfit) } else { Ok(Self(text.to_owned())) }
        }
    }

    parsed::<Name, D>(deserializer, "a name").map(|name| name.0)
}

/// A century: what lives longer lives for good.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// How long something lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// For good.
    Never,
    /// For as long as `[memory.promotion] preset` says.
    Preset,
    /// For this long, which is more than nothing.
    After(Duration),
}

impl Ttl {
    /// How long, where the preset says `preset`; `None` is for good.
    pub fn duration(self, preset: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Preset => preset,
            Self::After(life) => Some(life),
        }
    }
}

impl FromStr for Ttl {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        match text {
            "never" => Ok(Self::Never),
            "preset" => Ok(Self::Preset),
            text => match humantime::parse_duration(text) {
                Ok(life) if life > Duration::ZERO && life <= LONGEST => Ok(Self::After(life)),
                _ => Err(Unfit),
            },
        }
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Preset => f.write_str("preset"),
            Self::After(life) => match (life.as_secs(), life.subsec_nanos()) {
                // As people write them, where it is whole days or hours.
                (secs, 0) if secs.is_multiple_of(86_400) => write!(f, "{}d", secs / 86_400),
                (secs, 0) if secs.is_multiple_of(3_600) => write!(f, "{}h", secs / 3_600),
                _ => humantime::format_duration(*life).fmt(f),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, "a duration such as \"24h\" or \"90d\", \"never\" or \"preset\"")
    }
}

/// A time that no preset decides.
pub(super) fn lasting<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ttl, D::Error> {
    struct Lasting(Ttl);

    impl FromStr for Lasting {
        type Err = Unfit;

        fn from_str(text: &str) -> Result<Self, Unfit> {
            text.parse().and_then(|ttl| if ttl == Ttl::Preset { Err(Unfit) } else { Ok(Self(ttl)) })
        }
    }

    parsed::<Lasting, D>(deserializer, "a duration such as \"24h\", or \"never\"").map(|lasting| lasting.0)
}

impl Serialize for Ttl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A SHA-256 digest; as text 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256(pub [u8; 32]);

impl FromStr for Sha256 {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
        let digits: [u8; 64] = digits.and_then(|digits| digits.try_into().ok()).ok_or(Unfit)?;
        Ok(Self(std::array::from_fn(|i| digits[2 * i] << 4 | digits[2 * i + 1])))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, "a list of SHA-256 digests of 64 hexadecimal digits")
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A folder by its absolute path, so that it is the same one wherever the program is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Folder(PathBuf);

impl Folder {
    /// The absolute path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Folder {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        if Path::new(text).is_absolute() { Ok(Self(text.into())) } else { Err(Unfit) }
    }
}

impl<'de> Deserialize<'de> for Folder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, "a list of folders by absolute path")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ttl_reads_durations_and_never() {
        assert_eq!("never".parse(), Ok(Ttl::Never));
        assert_eq!("24h".parse(), Ok(Ttl::After(Duration::from_secs(86_400))));
        assert_eq!("preset".parse(), Ok(Ttl::Preset));
        let preset = Some(Duration::from_secs(1));
        assert_eq!(Ttl::Never.duration(preset), None);
        assert_eq!(Ttl::Preset.duration(preset), preset);
        assert_eq!(Ttl::After(Duration::MAX).duration(preset), Some(Duration::MAX));
        for wrong in ["", "0s", "24", "-1h", "soon", "Never"] {
            assert_eq!(wrong.parse::<Ttl>(), Err(Unfit), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn ttl_and_digest_read_what_they_print(ms in 1u64..3_000_000_000_000, bytes: [u8; 32]) {
            let ttl = Ttl::After(Duration::from_millis(ms));
            prop_assert_eq!(ttl.to_string().parse(), Ok(ttl));
            let digest = Sha256(bytes);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
            prop_assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
        }

        #[test]
        fn no_text_makes_them_panic(text: String) {
            let _ = (text.parse::<Ttl>(), text.parse::<Sha256>(), text.parse::<Folder>());
        }
    }
}
