//! Who is asking: tokens verified, with a shared secret and with the issuer's key set, and the principal that comes of them.

mod error;
mod fetch;
mod key_set;
mod keys;
mod location;
mod principal;
mod verify;

pub use error::TokenError;
pub use fetch::FetchError;
pub use keys::{KeySetConfig, KeySetError};
pub use location::{KeySetLocation, WebAddress};
pub use principal::Principal;
pub use verify::{Verifier, VerifierConfig};

#[cfg(test)]
pub(crate) mod tests;
