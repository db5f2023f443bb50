//! PostgreSQL's own byte formats: LSN, timelines, WAL pages and records, pg_control, backup_label.
#![no_std]
extern crate alloc;
