//! `walden copy` between real stores: what it fills can be restored from, what is interrupted goes on, and nothing is overwritten.

mod conflicts;
mod fills;
