//! Failovers, clones, splits and rollbacks with real servers: whatever happens to the servers of one cluster, nothing that is stored is
//! touched, the history of a timeline comes before its WAL, a conflict is loud, and every timeline restores to what was written on it.

mod diverged;
mod going_live;
mod hosts;
mod promotions;
mod scene;
