//! Which take numbers each user of an activity holds, so that a limit is decided before anything is written.
//!
//! A take gets the smallest number its user has free; a released take gives its number back. Numbers of a batch that is
//! still being written count as held, so two takes of one user in one batch never get the same number.

use std::collections::HashMap;

use super::range_set::RangeSet;
use crate::ids::UserId;

/// The highest number that `UserTakes::low` has a bit for.
const LAST_LOW: u32 = u64::BITS - 1;
/// Bit 0 of `UserTakes::low`, as numbers begin at 1.
const RELEASED: u64 = 1;

/// The take numbers one user holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserTakes {
    /// Bit n stands for take number n; bit 0 says that a take of this user was released.
    low: u64,
    /// Take numbers above [`LAST_LOW`].
    high: RangeSet,
}

impl UserTakes {
    /// The smallest number not held, so never above `limit`; `None` if the user holds `limit` takes.
    pub fn next(&self, limit: Option<u32>) -> Option<u32> {
        if limit.is_some_and(|limit| self.live() >= limit) {
            return None;
        }
        match (self.low | RELEASED).trailing_ones() {
            no @ ..=LAST_LOW => Some(no),
            _ => self.high.first_gap_from(LAST_LOW + 1),
        }
    }

    /// Adds the number of a take; `false` if it is held already or none (0).
    pub fn add(&mut self, no: u32) -> bool {
        match no {
            0 => false,
            1..=LAST_LOW => {
                let added = self.low & 1 << no == 0;
                self.low |= 1 << no;
                added
            }
            _ => self.high.insert(no),
        }
    }

    /// Gives back the number of a take that was not committed; `false` if it is not held.
    pub fn put_back(&mut self, no: u32) -> bool {
        match no {
            0 => false,
            1..=LAST_LOW => {
                let held = self.low & 1 << no != 0;
                self.low &= !(1 << no);
                held
            }
            _ => self.high.remove(no),
        }
    }

    /// Gives back the number of a committed take; `false` if it is not held.
    pub fn release(&mut self, no: u32) -> bool {
        let held = self.put_back(no);
        if held {
            self.low |= RELEASED;
        }
        held
    }

    /// How many takes the user holds.
    pub fn live(&self) -> u32 {
        (self.low & !RELEASED).count_ones() + self.high.len()
    }

    /// Whether the user holds a take or had one released.
    fn has_ever_taken(&self) -> bool {
        self.low != 0 || !self.high.is_empty()
    }

    fn record(&mut self, live_take_no: Option<u32>) {
        match live_take_no {
            Some(no) => {
                self.add(no);
            }
            None => self.low |= RELEASED,
        }
    }
}

/// Collects the takes of a user as the database keeps them: a number for each live one, `None` for each released one.
impl FromIterator<Option<u32>> for UserTakes {
    fn from_iter<I: IntoIterator<Item = Option<u32>>>(live_take_nos: I) -> Self {
        let mut takes = Self::default();
        for live_take_no in live_take_nos {
            takes.record(live_take_no);
        }
        takes
    }
}

/// Why a user gets no take number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    #[error("the user holds as many takes as the limit allows")]
    LimitReached,
    #[error("the user's takes must be read from the database first")]
    UserUnknown,
}

/// User ids are snowflakes made by the server: nobody can choose them to collide, so a fast hash is safe.
type ByUser<T> = HashMap<UserId, T, foldhash::fast::RandomState>;

/// The users of an activity with their takes, at 16 bytes each.
///
/// *Complete* means that memory holds every user who ever took. As long as it does not, a user it does not know must be
/// looked up and [inserted](Self::insert) before anything is decided.
#[derive(Debug, Default)]
pub struct Takers {
    /// [`UserTakes::low`] of every known user.
    low: ByUser<u64>,
    /// [`UserTakes::high`] of the few users who have any.
    high: ByUser<RangeSet>,
    complete: bool,
}

impl Takers {
    /// Every user who ever took is in memory: one who is not never did.
    pub fn loaded(&mut self) {
        self.complete = true;
    }

    /// Whether memory can answer for this user.
    pub fn knows(&self, user: UserId) -> bool {
        self.complete || self.low.contains_key(&user)
    }

    /// Sets what the database says of a user, in place of anything known before.
    pub fn insert(&mut self, user: UserId, takes: UserTakes) {
        self.low.insert(user, takes.low);
        if takes.high.is_empty() {
            self.high.remove(&user);
        } else {
            self.high.insert(user, takes.high);
        }
    }

    /// Drops what is known of a user, who must be looked up again; so memory is not complete any more.
    pub fn forget(&mut self, user: UserId) {
        self.low.remove(&user);
        self.high.remove(&user);
        self.complete = false;
    }

    /// The takes of a user; `None` if memory cannot answer.
    pub fn get(&self, user: UserId) -> Option<UserTakes> {
        self.knows(user).then(|| UserTakes {
            low: self.low.get(&user).copied().unwrap_or_default(),
            high: self.high.get(&user).cloned().unwrap_or_default(),
        })
    }

    /// Gives the user the next take number, which counts as held from now on.
    pub fn reserve(&mut self, user: UserId, limit: Option<u32>) -> Result<u32, ReserveError> {
        if !self.knows(user) {
            return Err(ReserveError::UserUnknown);
        }
        self.change(user, |takes| {
            let no = takes.next(limit).ok_or(ReserveError::LimitReached)?;
            takes.add(no);
            Ok(no)
        })
    }

    /// Gives back a reserved number whose batch was rolled back; `false` if the user does not hold it.
    pub fn put_back(&mut self, user: UserId, no: u32) -> bool {
        self.change(user, |takes| takes.put_back(no))
    }

    /// Gives back the number of a released take; `false` if the user is not known to hold it.
    pub fn release(&mut self, user: UserId, no: u32) -> bool {
        self.change(user, |takes| takes.release(no))
    }

    fn change<R>(&mut self, user: UserId, change: impl FnOnce(&mut UserTakes) -> R) -> R {
        let low = self.low.get(&user).copied();
        let high = self.high.remove(&user);
        let mut takes = UserTakes { low: low.unwrap_or_default(), high: high.unwrap_or_default() };
        let result = change(&mut takes);
        if low.is_some() || takes.has_ever_taken() {
            self.insert(user, takes);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn takes(live: impl IntoIterator<Item = u32>) -> UserTakes {
        live.into_iter().map(Some).collect()
    }

    fn has_ever_taken(takers: &Takers, user: UserId) -> Option<bool> {
        takers.get(user).map(|takes| takes.has_ever_taken())
    }

    #[test]
    fn the_next_take_gets_the_smallest_free_number_within_the_limit() {
        for (live, limit, next) in [
            (vec![], None, Some(1)),
            (vec![], Some(1), Some(1)),
            (vec![1], Some(1), None),
            (vec![2], Some(1), None), // the limit was lowered since
            (vec![1, 2, 3], Some(4), Some(4)),
            (vec![1, 3], Some(3), Some(2)),
            (vec![], Some(0), None),
            ((1..=62).collect(), None, Some(63)),
            ((1..=63).collect(), None, Some(64)),
            ((1..=64).collect(), None, Some(65)),
            ((1..=63).collect(), Some(63), None),
            ((1..=100).filter(|no| *no != 70).collect(), None, Some(70)),
        ] {
            assert_eq!(takes(live.clone()).next(limit), next, "{live:?} within {limit:?}");
        }
    }

    #[test]
    fn a_number_counts_once() {
        let mut takes = takes([1, 64]);
        for no in [0, 1, 64] {
            assert!(!takes.add(no), "{no}");
        }
        for no in [0, 2, 65] {
            assert!(!takes.release(no), "{no}");
        }
        assert_eq!(takes.live(), 2);
    }

    #[test]
    fn releasing_remembers_the_user_and_putting_back_does_not() {
        let mut tried = UserTakes::default();
        assert!(tried.add(1) && tried.put_back(1));
        assert_eq!((tried.live(), tried.has_ever_taken()), (0, false));

        let mut returned = takes([1]);
        assert!(returned.release(1));
        assert_eq!((returned.live(), returned.next(Some(1)), returned.has_ever_taken()), (0, Some(1), true));
        assert_eq!(returned, [None].into_iter().collect(), "as the database tells it");
    }

    #[test]
    fn takes_of_one_batch_share_the_limit() {
        let mut takers = Takers::default();
        takers.loaded();
        assert_eq!(takers.reserve(UserId(7), Some(2)), Ok(1));
        assert_eq!(takers.reserve(UserId(7), Some(2)), Ok(2));
        assert_eq!(takers.reserve(UserId(7), Some(2)), Err(ReserveError::LimitReached));
        assert!(takers.put_back(UserId(7), 1));
        assert_eq!(takers.reserve(UserId(7), Some(2)), Ok(1));
    }

    #[test]
    fn an_unknown_user_is_looked_up_unless_memory_is_complete() {
        let mut takers = Takers::default();
        takers.insert(UserId(7), takes([1]));
        assert_eq!(takers.reserve(UserId(8), None), Err(ReserveError::UserUnknown));
        assert_eq!((takers.knows(UserId(8)), takers.get(UserId(8))), (false, None));
        takers.insert(UserId(8), takes([1, 2]));
        assert_eq!(takers.reserve(UserId(8), None), Ok(3));

        takers.loaded();
        assert_eq!((takers.knows(UserId(9)), has_ever_taken(&takers, UserId(9))), (true, Some(false)));
        assert_eq!(takers.reserve(UserId(9), None), Ok(1));

        takers.forget(UserId(7));
        assert_eq!((takers.complete, takers.knows(UserId(7)), takers.knows(UserId(8))), (false, false, true));
    }

    #[test]
    fn what_the_database_says_replaces_what_was_known() {
        let mut takers = Takers::default();
        takers.insert(UserId(7), takes([64]));
        assert_eq!(has_ever_taken(&takers, UserId(7)), Some(true));
        takers.insert(UserId(7), takes([1]));
        assert_eq!(takers.get(UserId(7)), Some(takes([1])));
        takers.insert(UserId(7), takes([]));
        assert_eq!((takers.knows(UserId(7)), has_ever_taken(&takers, UserId(7))), (true, Some(false)));
    }

    #[test]
    fn a_million_users_fit_in_40_megabytes() {
        let mut takers = Takers::default();
        for user in 0..1_000_000_i64 {
            takers.insert(UserId(user << 22), takes(1..=5));
        }
        let buckets = takers.low.capacity() / 7 * 8; // the map is at most 7/8 full
        let bytes = buckets * (size_of::<(UserId, u64)>() + 1); // and keeps one byte of hash a bucket
        assert!(takers.high.is_empty() && bytes <= 40_000_000, "{bytes}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(UserId, Option<u32>),
        PutBack(UserId, u32),
        Release(UserId, u32),
        Look(UserId),
        Forget(UserId),
        Reload,
    }

    /// A user's live numbers, and whether a take of theirs was ever released.
    type Truth = BTreeMap<UserId, (BTreeSet<u32>, bool)>;

    fn step() -> impl Strategy<Value = Step> {
        let user = || (1..=3_i64).prop_map(UserId);
        // Both sides of the step from bits to ranges, and what is never a number.
        let no = || prop_oneof![0..=4_u32, 61..=67_u32];
        let limit = prop_oneof![Just(None), (0..=5_u32).prop_map(Some), (62..=66_u32).prop_map(Some)];
        prop_oneof![
            30 => (user(), limit).prop_map(|(user, limit)| Step::Reserve(user, limit)),
            2 => (user(), no()).prop_map(|(user, no)| Step::PutBack(user, no)),
            4 => (user(), no()).prop_map(|(user, no)| Step::Release(user, no)),
            6 => user().prop_map(Step::Look),
            1 => user().prop_map(Step::Forget),
            1 => Just(Step::Reload),
        ]
    }

    fn rows(truth: &Truth, user: UserId) -> Vec<Option<u32>> {
        let Some((live, released)) = truth.get(&user) else { return vec![] };
        live.iter().copied().map(Some).chain(released.then_some(None)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn every_history_agrees_with_plain_sets(
            already in 0..=70_u32,
            steps in prop::collection::vec(step(), 1..150),
        ) {
            let mut truth = Truth::from([(UserId(1), ((1..=already).collect(), false))]);
            let mut known = BTreeSet::new();
            let mut takers = Takers::default();
            for step in steps {
                match step {
                    Step::Reserve(user, limit) => {
                        let expected = if takers.complete || known.contains(&user) {
                            let (live, _) = truth.entry(user).or_default();
                            let no = (1..).find(|no| !live.contains(no)).unwrap();
                            if limit.is_some_and(|limit| live.len() >= limit as usize) {
                                Err(ReserveError::LimitReached)
                            } else {
                                live.insert(no);
                                known.insert(user);
                                Ok(no)
                            }
                        } else {
                            Err(ReserveError::UserUnknown)
                        };
                        prop_assert_eq!(takers.reserve(user, limit), expected);
                    }
                    Step::PutBack(user, no) if takers.knows(user) => {
                        let held = truth.get_mut(&user).is_some_and(|(live, _)| live.remove(&no));
                        prop_assert_eq!(takers.put_back(user, no), held);
                    }
                    Step::Release(user, no) if takers.knows(user) => {
                        let held = truth.get_mut(&user).is_some_and(|(live, released)| {
                            let held = live.remove(&no);
                            *released |= held;
                            held
                        });
                        prop_assert_eq!(takers.release(user, no), held);
                    }
                    Step::PutBack(user, no) => prop_assert!(!takers.put_back(user, no)),
                    Step::Release(user, no) => prop_assert!(!takers.release(user, no)),
                    Step::Look(user) => {
                        takers.insert(user, rows(&truth, user).into_iter().collect());
                        known.insert(user);
                    }
                    Step::Forget(user) => {
                        takers.forget(user);
                        known.remove(&user);
                        prop_assert!(!takers.complete);
                    }
                    Step::Reload => {
                        takers = Takers::default();
                        for &user in truth.keys() {
                            let rows = rows(&truth, user);
                            if !rows.is_empty() {
                                takers.insert(user, rows.into_iter().collect());
                            }
                        }
                        takers.loaded();
                        known = truth.keys().copied().filter(|&user| !rows(&truth, user).is_empty()).collect();
                    }
                }
                for user in (1..=3).map(UserId) {
                    let knows = takers.complete || known.contains(&user);
                    prop_assert_eq!(takers.knows(user), knows);
                    let (live, released) = truth.get(&user).cloned().unwrap_or_default();
                    prop_assert_eq!(has_ever_taken(&takers, user), knows.then_some(released || !live.is_empty()));
                    prop_assert_eq!(takers.get(user).map(|takes| takes.live() as usize), knows.then_some(live.len()));
                    let expected: UserTakes = rows(&truth, user).into_iter().collect();
                    prop_assert_eq!(takers.get(user), knows.then_some(expected));
                }
            }
        }
    }
}
