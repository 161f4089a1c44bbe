//! May this user read this private channel, and write to it?
