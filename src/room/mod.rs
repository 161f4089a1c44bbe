//! Who is in a topic together: broadcast between clients, and presence. Both live in memory only.
