//! How settings are written, where that is not how they are kept.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use serde::Deserialize;

/// A list, or its items in one string with commas between them, as an environment variable has them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list, or a string with commas between the items")]
enum List {
    Items(Vec<String>),
    Commas(String),
}

pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: fmt::Display>,
{
    let items = match List::deserialize(deserializer)? {
        List::Items(items) => items,
        List::Commas(text) => {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
        }
    };
    let parse = |item: &String| item.parse().map_err(|error| format!("{item:?}: {error}"));
    items.iter().map(parse).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

/// A list of whole numbers of milliseconds.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of whole numbers, or a string with commas between them")]
enum Numbers {
    Items(Vec<u64>),
    Commas(String),
}

pub(super) fn millis_list<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Duration>, D::Error> {
    let numbers = match Numbers::deserialize(deserializer)? {
        Numbers::Items(numbers) => numbers,
        Numbers::Commas(text) => {
            let parse = |item: &str| item.parse().map_err(|_| format!("{item:?} is not a whole number"));
            let numbers = text.split(',').map(str::trim).map(parse).collect::<Result<_, _>>();
            numbers.map_err(serde::de::Error::custom)?
        }
    };
    Ok(numbers.into_iter().map(Duration::from_millis).collect())
}

pub(super) fn in_millis<S: serde::Serializer>(times: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(times.iter().map(Duration::as_millis))
}

pub(super) fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    listening_address(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Where to listen: names are not looked up.
pub fn listening_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is no IP address with a port, as in \"127.0.0.1:8080\""))
}

/// A single address is a network of one.
pub(super) fn networks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: String| {
        let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
        address.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is neither an address nor a network"))
    };
    let texts: Vec<String> = list(deserializer)?;
    texts.into_iter().map(network).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

pub(super) fn texts<S: serde::Serializer>(
    items: &[impl fmt::Display],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(items.iter().map(ToString::to_string))
}

pub(super) fn secret_list<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<SecretString>, D::Error> {
    Ok(list::<D, String>(deserializer)?.into_iter().map(SecretString::from).collect())
}

pub(super) fn masked<'a, S: serde::Serializer, T>(secrets: &'a T, serializer: S) -> Result<S::Ok, S::Error>
where
    &'a T: IntoIterator<Item = &'a SecretString>,
{
    match secrets.into_iter().count() {
        0 => serializer.serialize_none(),
        _ => serializer.serialize_str("***"),
    }
}

/// A duration as a whole number of milliseconds.
pub(super) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        time: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// A duration as a whole number of seconds.
pub(super) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        time: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(time.as_secs())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

/// A duration as a whole number of days.
pub(super) mod days {
    use chrono::TimeDelta;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        time: &TimeDelta,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.num_days())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<TimeDelta, D::Error> {
        u16::deserialize(deserializer).map(|days| TimeDelta::days(days.into()))
    }
}
