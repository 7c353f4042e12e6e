use super::StoreError;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How long a record matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Layer {
    /// Hot context of the work at hand; expires soon.
    Interact = 0,
    /// What was distilled from it; expires later.
    Insights = 1,
    /// What stays.
    Assets = 2,
}

impl Layer {
    /// Every layer, from the shortest life to the longest.
    pub const ALL: [Self; 3] = [Self::Interact, Self::Insights, Self::Assets];

    /// The layer that records are promoted to from here.
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::Interact => Some(Self::Insights),
            Self::Insights => Some(Self::Assets),
            Self::Assets => None,
        }
    }

    /// The name that users write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interact => "interact",
            Self::Insights => "insights",
            Self::Assets => "assets",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Layer {
    type Err = StoreError;

    fn from_str(name: &str) -> Result<Self, StoreError> {
        Self::ALL.into_iter().find(|layer| layer.name() == name).ok_or_else(|| {
            StoreError::invalid(format!("'{name}' is no layer; the layers are interact, insights and assets"))
        })
    }
}

impl ToSql for Layer {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(*self as u8))
    }
}

impl FromSql for Layer {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        Self::ALL.into_iter().find(|&layer| layer as i64 == number).ok_or(FromSqlError::OutOfRange(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_read_as_it_is_written() {
        for layer in Layer::ALL {
            assert_eq!(layer.to_string().parse(), Ok(layer));
        }
        let error = "hot".parse::<Layer>().unwrap_err().to_string();
        assert!(error.contains("'hot'") && error.contains("insights"), "{error}");
    }
}
