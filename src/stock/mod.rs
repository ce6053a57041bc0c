//! Who gets which unit: a drum of numbered tokens, drawn from memory and judged by the database.

pub mod range_set;
pub mod user_takes;
pub mod window;
