//! What an operator sees: metrics and their names, the dashboards and alerts that use them, the state dump, the audit log.

mod audit;
mod names;
mod seen;
mod why;
