//! Sets of numbers that mostly come in runs: free tokens, tokens in flight, take numbers.
//!
//! Two billion free tokens in a row cost as much as one; scattered ones cost up to 20 bytes each.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// A set of positive numbers, kept as the fewest ranges that cover it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Keyed by the end of each range, so that taking the lowest number changes a value and moves no key.
    first_by_last: BTreeMap<u32, u32>,
    len: u32,
}

/// What was offered as a set is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ranges must hold positive numbers, be sorted and not overlap")]
pub struct NotSorted;

impl RangeSet {
    /// Builds the set from sorted, disjoint ranges, as a database query returns them.
    pub fn from_sorted(ranges: impl IntoIterator<Item = RangeInclusive<u32>>) -> Result<Self, NotSorted> {
        let mut merged: Vec<(u32, u32)> = Vec::new();
        let mut len = 0;
        for (first, last) in ranges.into_iter().map(RangeInclusive::into_inner) {
            if first == 0 || first > last {
                return Err(NotSorted);
            }
            match merged.last_mut() {
                Some((end, _)) if first <= *end => return Err(NotSorted),
                Some((end, _)) if first - 1 == *end => *end = last,
                _ => merged.push((last, first)),
            }
            len += last - first + 1;
        }
        Ok(Self { first_by_last: merged.into_iter().collect(), len })
    }

    /// How many numbers are in the set.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no number is in the set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `n` is in the set.
    pub fn contains(&self, n: u32) -> bool {
        self.first_by_last.range(n..).next().is_some_and(|(_, &first)| first <= n)
    }

    /// The smallest number from `n` on that is not in the set.
    pub fn first_gap_from(&self, n: u32) -> Option<u32> {
        match self.first_by_last.range(n..).next() {
            Some((last, &first)) if first <= n => last.checked_add(1),
            _ => Some(n),
        }
    }

    /// Adds `n`, which must be positive; `false` if it was there already.
    pub fn insert(&mut self, n: u32) -> bool {
        debug_assert!(n > 0, "numbers begin at 1");
        if self.contains(n) {
            return false;
        }
        let first = self.first_by_last.remove(&n.wrapping_sub(1)).unwrap_or(n);
        match self.first_by_last.range_mut(n..).next() {
            Some((_, next)) if *next - 1 == n => *next = first,
            _ => {
                self.first_by_last.insert(n, first);
            }
        }
        self.len += 1;
        true
    }

    /// Takes `n` out; `false` if it was not there.
    pub fn remove(&mut self, n: u32) -> bool {
        let Some((&last, first)) = self.first_by_last.range_mut(n..).next() else { return false };
        if *first > n {
            return false;
        }
        let start = *first;
        if n < last {
            *first = n + 1;
        } else {
            self.first_by_last.remove(&last);
        }
        if start < n {
            self.first_by_last.insert(n - 1, start);
        }
        self.len -= 1;
        true
    }

    /// Takes the lowest number out.
    pub fn pop_first(&mut self) -> Option<u32> {
        let mut lowest = self.first_by_last.first_entry()?;
        let n = *lowest.get();
        if n < *lowest.key() {
            *lowest.get_mut() = n + 1;
        } else {
            lowest.remove();
        }
        self.len -= 1;
        Some(n)
    }

    /// The ranges that make up the set, in order.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = RangeInclusive<u32>> {
        self.first_by_last.iter().map(|(&last, &first)| first..=last)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_become_one_range() {
        let mut set = RangeSet::default();
        for n in [1, 3, 5, 4, 2] {
            assert!(set.insert(n));
        }
        assert_eq!(set.ranges().collect::<Vec<_>>(), [1..=5]);
        assert!(!set.insert(3), "it is there already");
        assert!(set.remove(3));
        assert_eq!(set.ranges().collect::<Vec<_>>(), [1..=2, 4..=5]);
    }

    #[test]
    fn all_numbers_there_are_fit_in_one_range() {
        let mut set = RangeSet::from_sorted([1..=u32::MAX]).unwrap();
        assert_eq!((set.len(), set.first_gap_from(1)), (u32::MAX, None));
        assert!(set.remove(u32::MAX));
        assert_eq!((set.pop_first(), set.len()), (Some(1), u32::MAX - 2));
    }

    #[test]
    #[expect(clippy::reversed_empty_ranges, reason = "an empty range is one of the refused inputs")]
    fn only_sorted_disjoint_positive_ranges_are_a_set() {
        for ranges in [vec![0..=3], vec![3..=2], vec![1..=4, 4..=6], vec![5..=6, 1..=2]] {
            assert_eq!(RangeSet::from_sorted(ranges), Err(NotSorted));
        }
        let touching = RangeSet::from_sorted([1..=4, 5..=6, 8..=8]).unwrap();
        assert_eq!(touching.ranges().collect::<Vec<_>>(), [1..=6, 8..=8]);
    }

    /// Numbers close together, so that ranges merge and split, at both ends of what there is.
    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![1..=24_u32, u32::MAX - 12..=u32::MAX]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32),
        Remove(u32),
        PopFirst,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => number().prop_map(Step::Insert),
            3 => number().prop_map(Step::Remove),
            1 => Just(Step::PopFirst),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(steps in prop::collection::vec(step(), 1..120)) {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(n) => prop_assert_eq!(set.insert(n), model.insert(n)),
                    Step::Remove(n) => prop_assert_eq!(set.remove(n), model.remove(&n)),
                    Step::PopFirst => prop_assert_eq!(set.pop_first(), model.pop_first()),
                }
                prop_assert_eq!(set.len() as usize, model.len());
                prop_assert_eq!(set.is_empty(), model.is_empty());
                prop_assert!(set.ranges().flatten().eq(model.iter().copied()));
                let ranges: Vec<_> = set.ranges().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end() + 1 < *pair[1].start()), "{:?}", ranges);
                for n in (1..=26).chain(u32::MAX - 14..=u32::MAX) {
                    prop_assert_eq!(set.contains(n), model.contains(&n));
                    prop_assert_eq!(set.first_gap_from(n), (n..=u32::MAX).find(|n| !model.contains(n)));
                }
                prop_assert_eq!(RangeSet::from_sorted(ranges), Ok(set.clone()));
            }
        }
    }
}
