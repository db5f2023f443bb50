//! `walden`: PostgreSQL WAL archiving and point-in-time recovery.
fn main() {}
