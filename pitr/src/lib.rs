//! Getting data out: recovery plan, restore, archive-get, verify.

pub mod archive_get;
pub mod assemble;
pub mod conf_file;
pub mod data_directory;
pub mod error;
pub mod gather;
mod last_commit;
mod layout;
pub mod left_behind;
pub mod listen_address;
pub mod log;
pub mod manifest;
pub mod plan;
pub mod postgres;
pub mod reach;
pub mod recovery_conf;
pub mod restore;
mod roll_ups;
pub mod scope;
pub mod search;
pub mod segment_source;
pub mod settle;
pub mod stop;
pub mod stretches;
pub mod survey;
pub mod tablespaces;
pub mod tar_slice;
pub mod target;
pub mod time;
pub mod verify;
pub mod window;

pub use error::{Error, Result};
pub use target::{RecoveryGoal, RecoveryTarget};
