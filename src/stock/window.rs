//! The free tokens a node may hand out of the token blocks it holds. Pure: the batch writer commits, this counts.
//!
//! A token of a held block is free, in flight or sold. [`reserve`](TokenWindow::reserve) takes it in flight; there it
//! stays until the batch is known to be committed ([`confirm`](TokenWindow::confirm)) or rolled back
//! ([`put_back`](TokenWindow::put_back)), however long that takes to find out. So no token is handed out twice, none is
//! lost, and for every block free + in flight + sold is its size. A wrong call is an error and changes nothing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::range_set::{NotSorted, RangeSet};
use crate::ids::BlockId;

/// A range of tokens leased to this node, with the epoch that fences its writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBlock {
    pub id: BlockId,
    pub epoch: i64,
    pub first: u32,
    pub last: u32,
}

/// Why a block was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    #[error("a block's tokens run from a first, at least 1, to a last")]
    NoTokens,
    #[error("block {0} is already held")]
    AlreadyHeld(BlockId),
    #[error("the tokens overlap those of held block {0}")]
    Overlaps(BlockId),
    #[error("a token given as free is outside the block")]
    FreeOutside,
    #[error("the free tokens are not a set: {0}")]
    FreeNotSorted(#[from] NotSorted),
}

/// The state a token was found in, where it should have been in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("token {0} is free")]
    Free(u32),
    #[error("token {0} is in flight")]
    InFlight(u32),
    #[error("token {0} is sold")]
    Sold(u32),
    #[error("no held block covers token {0}")]
    NotHeld(u32),
}

/// The token blocks a node holds of one activity, and the state of each of their tokens.
#[derive(Debug, Default)]
pub struct TokenWindow {
    /// By first token.
    blocks: BTreeMap<u32, Held>,
    /// First token of the lowest block with a free token.
    front: Option<u32>,
}

#[derive(Debug)]
struct Held {
    block: HeldBlock,
    free: RangeSet,
    in_flight: RangeSet,
}

impl HeldBlock {
    /// The tokens of the block.
    pub fn tokens(&self) -> RangeInclusive<u32> {
        self.first..=self.last
    }
}

impl TokenWindow {
    /// Takes over a block with its free tokens, given as sorted, disjoint ranges; its other tokens are sold.
    pub fn add_block(
        &mut self,
        block: HeldBlock,
        free: impl IntoIterator<Item = RangeInclusive<u32>>,
    ) -> Result<(), BlockError> {
        if block.first == 0 || block.first > block.last {
            return Err(BlockError::NoTokens);
        }
        if self.blocks().any(|held| held.id == block.id) {
            return Err(BlockError::AlreadyHeld(block.id));
        }
        if let Some((_, below)) = self.blocks.range(..=block.last).next_back()
            && below.block.last >= block.first
        {
            return Err(BlockError::Overlaps(below.block.id));
        }
        let free = RangeSet::from_sorted(free)?;
        if free.ranges().next().is_some_and(|lowest| *lowest.start() < block.first)
            || free.ranges().next_back().is_some_and(|highest| *highest.end() > block.last)
        {
            return Err(BlockError::FreeOutside);
        }
        if !free.is_empty() {
            self.lower_front_to(block.first);
        }
        self.blocks.insert(block.first, Held { block, free, in_flight: RangeSet::default() });
        Ok(())
    }

    /// Drops a block that another node took over; returns its tokens in flight, which only the database can settle now.
    pub fn remove_block(&mut self, id: BlockId) -> Option<Vec<u32>> {
        let first = self.blocks().find(|block| block.id == id)?.first;
        let held = self.blocks.remove(&first)?;
        self.skip_empty_blocks();
        Some(held.in_flight.ranges().flatten().collect())
    }

    /// Drops and returns the blocks in which every token is sold.
    pub fn take_exhausted(&mut self) -> Vec<HeldBlock> {
        self.blocks.extract_if(.., |_, held| held.is_exhausted()).map(|(_, held)| held.block).collect()
    }

    /// The block that the next tokens come from: a batch stays within it, and is fenced by its epoch alone.
    pub fn front_block(&self) -> Option<HeldBlock> {
        self.front().map(|held| held.block)
    }

    /// How many tokens can be reserved before the front block changes.
    pub fn available_in_front(&self) -> u32 {
        self.front().map_or(0, |held| held.free.len())
    }

    /// Takes the lowest free token in flight.
    pub fn reserve(&mut self) -> Option<u32> {
        let held = self.blocks.get_mut(&self.front?)?;
        let token = held.free.pop_first()?;
        held.in_flight.insert(token);
        self.skip_empty_blocks();
        Some(token)
    }

    /// A token in flight is sold: its batch has committed.
    pub fn confirm(&mut self, token: u32) -> Result<(), TokenError> {
        self.covering(token).ok_or(TokenError::NotHeld(token))?.land(token)
    }

    /// A token in flight is free again: its batch was rolled back.
    pub fn put_back(&mut self, token: u32) -> Result<(), TokenError> {
        let held = self.covering(token).ok_or(TokenError::NotHeld(token))?;
        held.land(token)?;
        held.free.insert(token);
        let first = held.block.first;
        self.lower_front_to(first);
        Ok(())
    }

    /// A sold token is free again: its take was released; `None` leaves it to the holder of its block.
    pub fn release(&mut self, token: u32) -> Result<Option<BlockId>, TokenError> {
        let Some(held) = self.covering(token) else { return Ok(None) };
        if held.in_flight.contains(token) {
            return Err(TokenError::InFlight(token));
        }
        if !held.free.insert(token) {
            return Err(TokenError::Free(token));
        }
        let HeldBlock { id, first, .. } = held.block;
        self.lower_front_to(first);
        Ok(Some(id))
    }

    /// The held blocks, by their tokens.
    pub fn blocks(&self) -> impl Iterator<Item = HeldBlock> {
        self.blocks.values().map(|held| held.block)
    }

    fn front(&self) -> Option<&Held> {
        self.blocks.get(&self.front?)
    }

    fn covering(&mut self, token: u32) -> Option<&mut Held> {
        let (_, held) = self.blocks.range_mut(..=token).next_back()?;
        (token <= held.block.last).then_some(held)
    }

    /// The block that begins at `first` has a free token: it is the front unless one below it has, too.
    fn lower_front_to(&mut self, first: u32) {
        self.front = Some(self.front.map_or(first, |front| front.min(first)));
    }

    /// Moves the front past blocks that have no free token left.
    fn skip_empty_blocks(&mut self) {
        if let Some(front) = self.front {
            self.front =
                self.blocks.range(front..).find(|(_, held)| !held.free.is_empty()).map(|(&first, _)| first);
        }
    }
}

impl Held {
    fn is_exhausted(&self) -> bool {
        self.free.is_empty() && self.in_flight.is_empty()
    }

    /// Ends the flight of a token.
    fn land(&mut self, token: u32) -> Result<(), TokenError> {
        if self.in_flight.remove(token) {
            Ok(())
        } else if self.free.contains(token) {
            Err(TokenError::Free(token))
        } else {
            Err(TokenError::Sold(token))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn block(id: i64, tokens: RangeInclusive<u32>) -> HeldBlock {
        HeldBlock { id: BlockId(id), epoch: 1, first: *tokens.start(), last: *tokens.end() }
    }

    /// Holds the given blocks, all tokens free, numbered from 1.
    fn window<const N: usize>(blocks: [RangeInclusive<u32>; N]) -> TokenWindow {
        let mut window = TokenWindow::default();
        for (id, tokens) in (1..).zip(blocks) {
            window.add_block(block(id, tokens.clone()), [tokens]).unwrap();
        }
        window
    }

    /// The token, and the block it is of.
    fn reserve(window: &mut TokenWindow) -> Option<(u32, i64)> {
        let front = window.front_block();
        window.reserve().zip(front.map(|block| block.id.0))
    }

    /// Tokens that are free, and in flight.
    fn counts(window: &TokenWindow) -> (u32, u32) {
        let held = || window.blocks.values();
        (held().map(|held| held.free.len()).sum(), held().map(|held| held.in_flight.len()).sum())
    }

    #[test]
    fn hands_out_each_token_once_block_by_block() {
        let mut window = window([11..=12, 1..=2]);
        let drawn: Vec<_> = std::iter::from_fn(|| reserve(&mut window)).collect();
        assert_eq!(drawn, [(1, 2), (2, 2), (11, 1), (12, 1)]);
        assert_eq!(counts(&window), (0, 4));
    }

    #[test]
    fn a_batch_stays_in_the_front_block() {
        let mut window = window([1..=3, 4..=9]);
        reserve(&mut window);
        assert_eq!(window.front_block(), Some(block(1, 1..=3)));
        assert_eq!(window.available_in_front(), 2);
    }

    #[test]
    fn a_token_put_back_is_the_next_to_be_drawn() {
        let mut window = window([1..=1, 5..=6]);
        for _ in 0..3 {
            reserve(&mut window);
        }
        assert_eq!(window.put_back(1), Ok(()));
        assert_eq!(reserve(&mut window), Some((1, 1)));
        assert_eq!(reserve(&mut window), None);
    }

    #[test]
    fn a_released_token_lives_again_if_its_block_is_held() {
        let mut window = window([1..=1]);
        reserve(&mut window);
        assert_eq!(window.release(1), Err(TokenError::InFlight(1)));
        window.confirm(1).unwrap();
        assert_eq!(window.release(1), Ok(Some(BlockId(1))));
        assert_eq!(window.release(1), Err(TokenError::Free(1)), "once is enough");
        assert_eq!(window.release(2), Ok(None), "another node's business");
        assert_eq!(reserve(&mut window), Some((1, 1)));
    }

    #[test]
    fn a_batch_has_one_outcome() {
        let mut window = window([1..=3]);
        reserve(&mut window);
        reserve(&mut window);
        assert_eq!(window.confirm(1), Ok(()));
        assert_eq!(window.put_back(1), Err(TokenError::Sold(1)));
        assert_eq!(window.put_back(2), Ok(()));
        assert_eq!(window.confirm(2), Err(TokenError::Free(2)));
        assert_eq!(window.confirm(9), Err(TokenError::NotHeld(9)));
        assert_eq!(window.put_back(9), Err(TokenError::NotHeld(9)));
    }

    #[test]
    fn a_lost_block_names_its_tokens_in_flight() {
        let mut window = window([1..=3, 4..=4]);
        reserve(&mut window);
        reserve(&mut window);
        window.confirm(1).unwrap();
        assert_eq!(window.remove_block(BlockId(1)), Some(vec![2]));
        assert_eq!(window.remove_block(BlockId(1)), None);
        assert_eq!(window.put_back(2), Err(TokenError::NotHeld(2)));
        assert_eq!((reserve(&mut window), window.blocks().count()), (Some((4, 2)), 1));
    }

    #[test]
    fn a_block_is_exhausted_when_every_token_is_sold() {
        let mut window = window([1..=1, 2..=2]);
        reserve(&mut window);
        assert_eq!(window.take_exhausted(), [], "token 1 may still come back");
        window.confirm(1).unwrap();
        assert_eq!(window.take_exhausted(), [block(1, 1..=1)]);
        assert_eq!(window.blocks().collect::<Vec<_>>(), [block(2, 2..=2)]);
    }

    #[test]
    fn refuses_blocks_that_make_no_sense() {
        let mut window = window([5..=9]);
        for (refused, free, why) in [
            (block(2, 0..=3), 1..=3, BlockError::NoTokens),
            (HeldBlock { id: BlockId(2), epoch: 1, first: 3, last: 2 }, 2..=2, BlockError::NoTokens),
            (block(1, 20..=29), 20..=29, BlockError::AlreadyHeld(BlockId(1))),
            (block(2, 9..=12), 10..=12, BlockError::Overlaps(BlockId(1))),
            (block(2, 1..=5), 1..=4, BlockError::Overlaps(BlockId(1))),
            (block(2, 6..=7), 6..=7, BlockError::Overlaps(BlockId(1))),
            (block(2, 1..=20), 1..=4, BlockError::Overlaps(BlockId(1))),
            (block(2, 1..=4), 1..=5, BlockError::FreeOutside),
            (block(2, 11..=12), 10..=12, BlockError::FreeOutside),
            (block(2, 11..=12), 0..=12, BlockError::FreeNotSorted(NotSorted)),
        ] {
            assert_eq!(window.add_block(refused, [free]), Err(why));
        }
        assert_eq!(window.blocks().collect::<Vec<_>>(), [block(1, 5..=9)]);
    }

    #[test]
    fn the_largest_block_costs_one_range() {
        let mut window = window([1..=1 << 31]);
        for token in 1..=1000 {
            assert_eq!(reserve(&mut window), Some((token, 1)));
        }
        assert_eq!(counts(&window).0, (1 << 31) - 1000);
        assert_eq!(window.blocks[&1].free.ranges().count(), 1);
        assert_eq!(window.blocks[&1].in_flight.ranges().count(), 1);
    }

    // The model: three plain sets and the truth in the database, against which random histories are replayed.

    const LAST_TOKEN: u32 = 24;

    #[derive(Clone, Debug)]
    enum Step {
        AddBlock(Index),
        LoseBlock(Index),
        HandBackExhausted,
        Reserve,
        Confirm(Target),
        PutBack(Target),
        Release(Target),
        ReleaseTwice(Target),
        /// The node dies; each token in flight turns out committed or not, and the blocks are loaded again.
        Restart(Vec<bool>),
    }

    /// Mostly a token for which the step makes sense, sometimes just any.
    #[derive(Clone, Debug)]
    enum Target {
        Fitting(Index),
        Any(u32),
    }

    #[derive(Debug)]
    struct Model {
        layout: Vec<HeldBlock>,
        held: BTreeMap<u32, HeldBlock>,
        free: BTreeSet<u32>,
        in_flight: BTreeSet<u32>,
        /// In the database, so known for blocks that are not held, too.
        sold: BTreeSet<u32>,
    }

    impl Model {
        fn new(cuts: BTreeSet<u32>) -> Self {
            let firsts: Vec<u32> = [1].into_iter().chain(cuts).collect();
            let lasts = firsts[1..].iter().map(|first| first - 1).chain([LAST_TOKEN]);
            let layout =
                (1..).zip(firsts.iter().zip(lasts)).map(|(id, (&first, last))| block(id, first..=last));
            let (held, free, in_flight, sold) = Default::default();
            Self { layout: layout.collect(), held, free, in_flight, sold }
        }

        fn holder(&self, token: u32) -> Option<HeldBlock> {
            self.held.values().copied().find(|block| block.tokens().contains(&token))
        }

        /// What the database says about a block: its unsold tokens, not always merged into the fewest ranges.
        fn free_in_database(&self, block: HeldBlock) -> Vec<RangeInclusive<u32>> {
            block.tokens().filter(|token| !self.sold.contains(token)).map(|token| token..=token).collect()
        }

        fn add(&mut self, block: HeldBlock) {
            self.held.insert(block.first, block);
            self.free.extend(block.tokens().filter(|token| !self.sold.contains(token)));
        }

        fn lose(&mut self, block: HeldBlock) -> Vec<u32> {
            self.held.remove(&block.first);
            self.free.retain(|token| !block.tokens().contains(token));
            self.in_flight.extract_if(block.tokens(), |_| true).collect()
        }

        fn wrong(&self, token: u32) -> TokenError {
            match token {
                _ if self.holder(token).is_none() => TokenError::NotHeld(token),
                _ if self.free.contains(&token) => TokenError::Free(token),
                _ if self.in_flight.contains(&token) => TokenError::InFlight(token),
                _ => TokenError::Sold(token),
            }
        }

        fn pick(target: &Target, fitting: &BTreeSet<u32>) -> u32 {
            match *target {
                Target::Fitting(index) if !fitting.is_empty() => **index.get(&Vec::from_iter(fitting)),
                Target::Fitting(_) => 1,
                Target::Any(token) => token,
            }
        }

        fn release(&mut self, token: u32) -> Result<Option<BlockId>, TokenError> {
            let Some(holder) = self.holder(token) else {
                self.sold.remove(&token); // the database frees it for whoever comes to hold the block
                return Ok(None);
            };
            if !self.sold.remove(&token) {
                return Err(self.wrong(token));
            }
            self.free.insert(token);
            Ok(Some(holder.id))
        }
    }

    fn apply(step: Step, window: &mut TokenWindow, model: &mut Model) -> Result<(), TestCaseError> {
        match step {
            Step::AddBlock(index) => {
                let block = *index.get(&model.layout);
                let added = window.add_block(block, model.free_in_database(block));
                if model.held.contains_key(&block.first) {
                    prop_assert_eq!(added, Err(BlockError::AlreadyHeld(block.id)));
                } else {
                    prop_assert_eq!(added, Ok(()));
                    model.add(block);
                }
            }
            Step::LoseBlock(index) => {
                let block = *index.get(&model.layout);
                let lost = model.held.contains_key(&block.first).then(|| model.lose(block));
                prop_assert_eq!(window.remove_block(block.id), lost);
            }
            Step::HandBackExhausted => {
                let sold_out = |block: &HeldBlock| block.tokens().all(|token| model.sold.contains(&token));
                let exhausted: Vec<_> = model.held.values().copied().filter(sold_out).collect();
                for block in &exhausted {
                    model.lose(*block);
                }
                prop_assert_eq!(window.take_exhausted(), exhausted);
            }
            Step::Reserve => {
                let token = model.free.pop_first();
                model.in_flight.extend(token);
                prop_assert_eq!(window.reserve(), token);
            }
            Step::Confirm(target) => {
                let token = Model::pick(&target, &model.in_flight);
                let expected = if model.in_flight.remove(&token) { Ok(()) } else { Err(model.wrong(token)) };
                if expected.is_ok() {
                    model.sold.insert(token);
                }
                prop_assert_eq!(window.confirm(token), expected);
            }
            Step::PutBack(target) => {
                let token = Model::pick(&target, &model.in_flight);
                let expected = if model.in_flight.remove(&token) { Ok(()) } else { Err(model.wrong(token)) };
                if expected.is_ok() {
                    model.free.insert(token);
                }
                prop_assert_eq!(window.put_back(token), expected);
            }
            Step::Release(target) => {
                let token = Model::pick(&target, &model.sold);
                prop_assert_eq!(window.release(token), model.release(token));
            }
            Step::ReleaseTwice(target) => {
                let token = Model::pick(&target, &model.sold);
                for _ in 0..2 {
                    prop_assert_eq!(window.release(token), model.release(token));
                }
            }
            Step::Restart(committed) => {
                let committed = committed.into_iter().chain(std::iter::repeat(false));
                let in_doubt = std::mem::take(&mut model.in_flight);
                model.sold.extend(
                    in_doubt.into_iter().zip(committed).filter_map(|(token, yes)| yes.then_some(token)),
                );
                model.free.clear();
                *window = TokenWindow::default();
                for block in model.held.clone().into_values() {
                    prop_assert_eq!(window.add_block(block, model.free_in_database(block)), Ok(()));
                    model.add(block);
                }
            }
        }
        Ok(())
    }

    fn agree(window: &TokenWindow, model: &Model) -> Result<(), TestCaseError> {
        prop_assert!(window.blocks().eq(model.held.values().copied()));
        prop_assert_eq!(window.blocks().count(), model.held.len());
        let (free, in_flight) = counts(window);
        prop_assert_eq!((free as usize, in_flight as usize), (model.free.len(), model.in_flight.len()));
        let front = model.free.first().and_then(|&token| model.holder(token));
        prop_assert_eq!(window.front_block(), front);
        let available = front.map_or(0, |front| model.free.range(front.tokens()).count());
        prop_assert_eq!(window.available_in_front() as usize, available);
        for held in window.blocks.values() {
            let tokens = held.block.tokens();
            prop_assert!(held.free.ranges().flatten().eq(model.free.range(tokens.clone()).copied()));
            prop_assert!(
                held.in_flight.ranges().flatten().eq(model.in_flight.range(tokens.clone()).copied())
            );
            let sold = model.sold.range(tokens.clone()).count();
            prop_assert_eq!(held.free.len() as usize + held.in_flight.len() as usize + sold, tokens.count());
        }
        Ok(())
    }

    fn target() -> impl Strategy<Value = Target> {
        prop_oneof![
            4 => any::<Index>().prop_map(Target::Fitting),
            1 => (0..=LAST_TOKEN + 2).prop_map(Target::Any),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<Index>().prop_map(Step::AddBlock),
            1 => any::<Index>().prop_map(Step::LoseBlock),
            1 => Just(Step::HandBackExhausted),
            12 => Just(Step::Reserve),
            7 => target().prop_map(Step::Confirm),
            3 => target().prop_map(Step::PutBack),
            3 => target().prop_map(Step::Release),
            1 => target().prop_map(Step::ReleaseTwice),
            1 => prop::collection::vec(any::<bool>(), 0..8).prop_map(Step::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn every_history_agrees_with_three_plain_sets(
            cuts in prop::collection::btree_set(2..=LAST_TOKEN, 0..5),
            steps in prop::collection::vec(step(), 1..150),
        ) {
            let (mut window, mut model) = (TokenWindow::default(), Model::new(cuts));
            for step in steps {
                apply(step, &mut window, &mut model)?;
                agree(&window, &model)?;
            }
        }
    }
}
