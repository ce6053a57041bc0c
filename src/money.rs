//! Money: integer minor units beside an ISO 4217 code, never a float.
//!
//! Amounts are `i64` in members and columns ending `_minor`. Each is at most [`MOST_MINOR`], so that sums of everything
//! one order can hold stay far below the end of `i64`.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// The greatest amount there is: ten billion in a currency with two decimals.
pub const MOST_MINOR: i64 = 1_000_000_000_000;

/// The text is no ISO 4217 code.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("an ISO 4217 code has three capital letters, as in \"CNY\"")]
pub struct MalformedCurrency;

/// An ISO 4217 code, as `CNY`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// How many decimals a whole unit has (ISO 4217).
    pub fn decimals(&self) -> u32 {
        match &self.0 {
            b"BIF" | b"CLP" | b"DJF" | b"GNF" | b"ISK" | b"JPY" | b"KMF" | b"KRW" | b"PYG" | b"RWF"
            | b"UGX" | b"VND" | b"VUV" | b"XAF" | b"XOF" | b"XPF" => 0,
            b"BHD" | b"IQD" | b"JOD" | b"KWD" | b"LYD" | b"OMR" | b"TND" => 3,
            _ => 2,
        }
    }

    /// How many minor units make a whole one.
    pub fn minor_per_major(&self) -> i64 {
        10_i64.pow(self.decimals())
    }

    /// An amount for people to read, as `CNY 109.00`.
    pub fn amount(&self, minor: i64) -> String {
        let (sign, minor, unit) =
            (if minor < 0 { "-" } else { "" }, minor.unsigned_abs(), self.minor_per_major().unsigned_abs());
        match self.decimals() as usize {
            0 => format!("{self} {sign}{minor}"),
            decimals => format!("{self} {sign}{}.{:0decimals$}", minor / unit, minor % unit),
        }
    }
}

impl FromStr for Currency {
    type Err = MalformedCurrency;

    fn from_str(text: &str) -> Result<Self, MalformedCurrency> {
        let code: [u8; 3] = text.as_bytes().try_into().map_err(|_| MalformedCurrency)?;
        if code.iter().all(u8::is_ascii_uppercase) { Ok(Self(code)) } else { Err(MalformedCurrency) }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl PartialSchema for Currency {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[A-Z]{3}$"))
            .examples(["CNY"])
            .description(Some("An ISO 4217 code."))
            .into()
    }
}

impl ToSchema for Currency {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_currency_is_three_capital_letters() {
        assert_eq!("CNY".parse::<Currency>().unwrap().to_string(), "CNY");
        for bad in ["", "cny", "CN", "CNYY", "C1Y", "元"] {
            assert_eq!(bad.parse::<Currency>(), Err(MalformedCurrency), "{bad}");
        }
    }

    #[test]
    fn an_amount_has_its_currencys_decimals() {
        for (code, minor, text) in [
            ("CNY", 10900, "CNY 109.00"),
            ("CNY", 5, "CNY 0.05"),
            ("CNY", -1234, "CNY -12.34"),
            ("JPY", 109, "JPY 109"),
            ("KWD", 1005, "KWD 1.005"),
            ("CNY", i64::MIN, "CNY -92233720368547758.08"),
        ] {
            assert_eq!(code.parse::<Currency>().unwrap().amount(minor), text);
        }
    }
}
