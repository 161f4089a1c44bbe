//! The same with synchronous replication hanging on purpose.
