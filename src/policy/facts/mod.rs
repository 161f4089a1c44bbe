//! Stand-in.
use std::sync::Arc;

use super::rule::Rule;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Before,
    After,
}
#[derive(Debug, Default)]
pub struct Facts;
#[derive(Debug)]
pub struct FactBinding;
#[derive(Debug)]
pub struct NotReady {
    pub table: Arc<str>,
}
impl Facts {
    pub fn new(_limit_bytes: usize) -> Facts {
        Facts
    }
    pub fn generation(&self) -> u64 {
        0
    }
    pub fn bind(&self, rule: &Rule) -> Result<FactBinding, NotReady> {
        match rule.sources.first() {
            Some(source) => Err(NotReady { table: source.table.clone() }),
            None => Ok(FactBinding),
        }
    }
}
