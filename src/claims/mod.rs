//! Who is asking: tokens verified, and the principal that comes of them.

mod error;
mod principal;
mod verify;

pub use error::TokenError;
pub use principal::Principal;
pub use verify::{Verifier, VerifierConfig};

#[cfg(test)]
pub(crate) mod tests;
