//! Arithmetic on ascending, disjoint ranges of token numbers.

use std::ops::RangeInclusive;

/// How many tokens the range has.
pub(super) fn size(range: &RangeInclusive<u32>) -> u32 {
    if range.is_empty() { 0 } else { range.end() - range.start() + 1 }
}

/// How many tokens the ranges have together.
pub(super) fn count(ranges: &[RangeInclusive<u32>]) -> u32 {
    ranges.iter().map(size).sum()
}

/// The `n`-th free token, counting from 1.
pub(super) fn nth_free(free: &[RangeInclusive<u32>], n: u32) -> u32 {
    let mut left = n;
    for range in free {
        if left <= size(range) {
            return range.start() + left - 1;
        }
        left -= size(range);
    }
    free.last().map_or(0, |range| *range.end())
}

/// The parts of `free` within `range`.
pub(super) fn within(free: &[RangeInclusive<u32>], range: &RangeInclusive<u32>) -> Vec<RangeInclusive<u32>> {
    free.iter()
        .map(|part| *part.start().max(range.start())..=*part.end().min(range.end()))
        .filter(|part| !part.is_empty())
        .collect()
}

/// The highest `n` of the free tokens (all of them if they are fewer), ascending.
pub(super) fn highest(free: &[RangeInclusive<u32>], n: u32) -> Vec<RangeInclusive<u32>> {
    let all = count(free);
    if all <= n {
        return free.to_vec();
    }
    let first = nth_free(free, all - n + 1);
    within(free, &(first..=u32::MAX))
}

/// `range` cut at the borders of `retired`, each piece with whether it is retired.
pub(super) fn pieces(
    range: &RangeInclusive<u32>,
    retired: &[RangeInclusive<u32>],
) -> Vec<(RangeInclusive<u32>, bool)> {
    let mut pieces = Vec::new();
    let mut next = *range.start();
    for part in retired {
        if next < *part.start() {
            pieces.push((next..=part.start() - 1, false));
        }
        pieces.push((part.clone(), true));
        next = part.end() + 1;
    }
    if next <= *range.end() {
        pieces.push((next..=*range.end(), false));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn free_ranges() -> impl Strategy<Value = Vec<RangeInclusive<u32>>> {
        proptest::collection::btree_set(1..200_u32, 1..60).prop_map(|tokens| {
            let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
            for token in tokens {
                match ranges.last_mut() {
                    Some(last) if *last.end() + 1 == token => *last = *last.start()..=token,
                    _ => ranges.push(token..=token),
                }
            }
            ranges
        })
    }

    proptest! {
        #[test]
        fn the_nth_free_token_has_n_free_ones_up_to_it(free in free_ranges(), n in 1..60_u32) {
            prop_assume!(n <= count(&free));
            prop_assert_eq!(count(&within(&free, &(1..=nth_free(&free, n)))), n);
        }

        #[test]
        fn retiring_takes_the_highest_and_loses_no_token(free in free_ranges(), n in 1..80_u32) {
            let retired = highest(&free, n);
            prop_assert_eq!(count(&retired), n.min(count(&free)));
            let pieces = pieces(&(1..=200), &retired);
            let covered: Vec<u32> = pieces.iter().flat_map(|(piece, _)| piece.clone()).collect();
            prop_assert_eq!(covered, (1..=200).collect::<Vec<_>>());
            let kept: u32 = pieces.iter().filter(|(_, gone)| !gone).map(|(piece, _)| count(&within(&free, piece))).sum();
            prop_assert_eq!(kept + count(&retired), count(&free));
            let lowest_retired = retired.first().map(|range| *range.start());
            let highest_kept = pieces.iter().filter(|(_, gone)| !gone)
                .flat_map(|(piece, _)| within(&free, piece)).map(|range| *range.end()).max();
            prop_assert!(highest_kept < lowest_retired || highest_kept.is_none());
        }
    }
}
