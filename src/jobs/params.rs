//! What a run may be told: the parameters of jobs.

use std::collections::BTreeSet;

use serde::de::{DeserializeOwned, Error, Unexpected};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use thiserror::Error;

use crate::error::FieldError;

/// Parameters of a job. The default is what a run by schedule gets, and what a member left out means; unknown members
/// are denied, so that a typo never passes as an absent one.
pub trait Params: DeserializeOwned + Default + Send + 'static {}

impl<T: DeserializeOwned + Default + Send + 'static> Params for T {}

/// The parameters of a job without any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// Which of `N` partitions, numbered from 0, a scan looks at; by default at all of them (JOB-2, SHD-3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitions<const N: u16>(BTreeSet<u16>);

impl<const N: u16> Partitions<N> {
    /// The numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().copied()
    }

    /// Whether no partition is left out.
    pub fn are_all(&self) -> bool {
        self.0.len() == usize::from(N)
    }
}

impl<const N: u16> Default for Partitions<N> {
    fn default() -> Self {
        Self((0..N).collect())
    }
}

impl<'de, const N: u16> Deserialize<'de> for Partitions<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let numbers = BTreeSet::<u16>::deserialize(deserializer)?;
        if numbers.is_empty() {
            return Err(D::Error::custom("name at least one partition, or leave the member out for all"));
        }
        match numbers.last() {
            Some(&last) if last >= N => Err(D::Error::invalid_value(
                Unexpected::Unsigned(last.into()),
                &format!("a partition from 0 to {}", N - 1).as_str(),
            )),
            _ => Ok(Self(numbers)),
        }
    }
}

/// Parameters that the job does not take.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .0.detail)]
pub struct InvalidParams(pub FieldError);

/// Reads parameters as they were given, if any were.
pub(super) fn parse<P: Params>(given: Option<&Value>) -> Result<P, InvalidParams> {
    let Some(given) = given else { return Ok(P::default()) };
    // What is derived for a struct also reads its members from an array.
    if !given.is_object() {
        let detail = "expected an object".to_owned();
        return Err(InvalidParams(FieldError { pointer: "/params".to_owned(), detail }));
    }
    serde_path_to_error::deserialize(given)
        .map_err(|error| InvalidParams(FieldError::found("/params", &error)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Scan {
        partitions: Partitions<8>,
        limit: Option<u32>,
    }

    fn pointer(given: Value) -> String {
        parse::<Scan>(Some(&given)).unwrap_err().0.pointer
    }

    #[test]
    fn what_is_left_out_means_all() {
        for given in [None, Some(json!({})), Some(json!({"limit": null}))] {
            let scan: Scan = parse(given.as_ref()).unwrap();
            assert!(scan.partitions.are_all());
            assert_eq!(scan.partitions.iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        }
        let scan: Scan = parse(Some(&json!({"partitions": [7, 0, 7], "limit": 3}))).unwrap();
        assert_eq!(scan.partitions.iter().collect::<Vec<_>>(), [0, 7]);
        assert!(!scan.partitions.are_all());
    }

    #[test]
    fn what_is_unknown_is_refused_with_its_place() {
        assert_eq!(pointer(json!({"partitions": [8]})), "/params/partitions");
        assert_eq!(pointer(json!({"partitions": [-1]})), "/params/partitions/0");
        assert_eq!(pointer(json!({"partitions": []})), "/params/partitions");
        assert_eq!(pointer(json!({"partitions": "1,2"})), "/params/partitions");
        assert_eq!(pointer(json!({"partition": [1]})), "/params/partition");
        assert_eq!(pointer(json!([])), "/params");
        assert!(parse::<NoParams>(Some(&json!({"a": 1}))).is_err());
        assert!(parse::<NoParams>(Some(&json!([]))).is_err());
        assert_eq!(parse::<NoParams>(Some(&json!({}))), Ok(NoParams {}));
    }
}
