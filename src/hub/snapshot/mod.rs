//! Snapshot and tail.
mod seam;
