//! Getting data in: replication client, receiver, archive-push, base backup.
