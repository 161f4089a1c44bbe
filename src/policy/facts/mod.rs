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
impl Facts {
    pub fn record(&mut self, _: Arc<Layout>) {}
    pub fn install(&mut self, _: FactTable, _: &crate::catalog::Snapshot) -> Result<(), String> {
        Ok(())
    }
    pub fn bytes(&self) -> usize {
        0
    }
}
#[derive(Debug)]
pub struct Layout;
impl Layout {
    pub fn of(
        _: &crate::catalog::Table,
        _: &crate::pgtype::Types,
        _: &std::collections::BTreeSet<i16>,
    ) -> Result<Layout, String> {
        Ok(Layout)
    }
}
#[derive(Debug)]
pub struct FactTable;
impl FactTable {
    pub fn new(_: Arc<Layout>) -> FactTable {
        FactTable
    }
    pub fn insert<'a>(&mut self, _: impl Iterator<Item = Option<&'a [u8]>>) -> Result<(), String> {
        Ok(())
    }
}
