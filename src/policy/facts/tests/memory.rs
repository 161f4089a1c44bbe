//! What facts cost.
