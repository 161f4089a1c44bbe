//! Who is asking: tokens verified, and the principal that comes of them.

mod principal;

pub use principal::Principal;
