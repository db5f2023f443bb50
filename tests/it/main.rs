//! Integration tests: the real binary against real servers and real stores. One test program, so that what is
//! expensive (an object store, `initdb`) is made once. What the tests stand on is in `support`.

mod archive_get;
mod backup;
mod copy;
mod demo;
mod failover;
mod fall_over;
mod faults;
mod gaps;
mod init;
mod invalid_wal;
mod list_status;
mod log;
mod push;
mod rescue;
mod restore;
mod rpo;
mod run;
mod several;
mod site;
mod smoke;
mod support;
mod support_test;
mod verify;
mod window;
