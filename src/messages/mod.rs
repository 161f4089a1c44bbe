//! The table `realtime.messages`: its partitions, and what is replayed out of it.
