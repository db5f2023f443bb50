//! Several repositories, read: what the first cannot give comes from the second, in the middle of a restore too, and what neither proves is
//! said of neither. With a store that dies at a chosen byte, objects damaged and taken away, and PostgreSQL as the judge.

mod chains;
mod hook;
mod restores;
pub(crate) mod world;
