//! What is found on whole servers that can't be mended by a statement.
