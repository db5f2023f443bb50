//! Getting data out: recovery plan, restore, archive-get.

pub mod conf_file;
