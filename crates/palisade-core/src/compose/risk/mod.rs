//! Risks: what works as written, and makes a bad day likelier or worse.
//!
//! Nothing here stands in the way of reading a file. What is wrong with it is found in `validate`.

mod allow;
mod table;

pub use table::{Risk, TABLE};
