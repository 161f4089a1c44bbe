//! From the text of a policy to an [`Expr`], by an allow-list: what is not recognised in every detail is not Pure.
//!
//! The parser is sqlparser's; each syntax node is matched with all that it may carry. Where a node has dozens of optional
//! clauses (a sub-select, a call), the node must print exactly as its plainest form does, so a clause that we don't know of
//! can't hide in it. Rejected: recognising policies by regular expressions or by their usual spelling as strings.
//!
//! ```text
//! condition ──► scalar ──► claims, literal      what is true, and what has a value
//!     │            ├─────► call                 helper functions: by their bodies
//!     │            └─────► topic                what is made of a channel's topic
//!     └──► subselect ──► source                 tables, with their own policies and grants
//! ```

mod call;
mod claims;
mod collation;
mod condition;
mod function;
mod literal;
mod members;
mod scalar;
mod scope;
mod select;
mod source;
mod subselect;
mod topic;
mod typed;

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::ast::Expr as Ast;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use self::condition::Want;
use self::scope::Env;
use super::{ClaimTerm, Expr, FactSource, RuleColumn, TopicValue};
use crate::catalog::{Catalog, Column, PolicyRow, Table};

/// Why a policy is not Pure, for `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) struct NotPure(pub(in crate::policy) String);

type Result<T> = std::result::Result<T, NotPure>;

fn not_pure<T>(what: &str, node: impl std::fmt::Display) -> Result<T> {
    let text = node.to_string();
    let mut shown: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(100).collect();
    if shown.len() < text.len() && shown.chars().count() == 100 {
        shown.push('…');
    }
    Err(NotPure(format!("{what}: {shown}")))
}

/// What is being read for its own sake: a policy of a table, or a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// The policies of the table of this oid.
    Policies(u32),
    /// The body of the function of this oid.
    Function(u32),
}

/// Reads the policies of one table for one role, one after the other, into the parts of one rule.
pub(in crate::policy) struct Compiler<'a> {
    pub(super) catalog: &'a Catalog,
    table: &'a Table,
    /// The column of the judged row that is the setting `realtime.topic` too, if that is set.
    pub(super) topic: Option<&'a Column>,
    /// What is made of it.
    pub(super) topic_values: Vec<TopicValue>,
    /// The role that subscribes; a function that is SECURITY DEFINER runs as another.
    role: &'a str,
    env: Env<'a>,
    frames: Vec<Frame>,
    /// The columns of each slot that need the privilege to be read.
    privileges: BTreeMap<u16, BTreeSet<i16>>,
    /// How often an element of a list was read.
    element_reads: usize,
    pub(super) reads: Vec<RuleColumn>,
    pub(super) claims: Vec<ClaimTerm>,
    pub(super) sources: Vec<FactSource>,
    /// Slots that Postgres does not let the role read, with what it may not do. The query fails if the slot is in the plan.
    pub(super) forbidden: Vec<(u16, String)>,
    /// Postgres refuses every query under these policies, whatever is folded away.
    pub(super) refused: Option<String>,
}

impl<'a> Compiler<'a> {
    pub(in crate::policy) fn new(catalog: &'a Catalog, table: &'a Table, role: &'a str) -> Compiler<'a> {
        Compiler {
            catalog,
            table,
            topic: None,
            topic_values: Vec::new(),
            role,
            env: Env::nothing(role),
            frames: vec![Frame::Policies(table.oid)],
            privileges: BTreeMap::new(),
            element_reads: 0,
            reads: Vec::new(),
            claims: Vec::new(),
            sources: Vec::new(),
            forbidden: Vec::new(),
            refused: None,
        }
    }

    /// The USING text of a policy of the judged table.
    pub(in crate::policy) fn policy(&mut self, policy: &'a PolicyRow, text: &str) -> Result<Expr> {
        self.env = Env::of_policy(self.role, &policy.functions, 0, self.table);
        self.policy_text(policy, text)
    }

    fn policy_text(&mut self, policy: &PolicyRow, text: &str) -> Result<Expr> {
        if policy.system_columns {
            return Err(NotPure("it reads a system column".into()));
        }
        Ok(self.condition(&expression(text)?, Want::Truth)?.for_truth())
    }
}

fn expression(text: &str) -> Result<Ast> {
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).map_err(|e| NotPure(e.to_string()))?;
    let ast = parser.parse_expr().map_err(|e| NotPure(e.to_string()))?;
    match parser.peek_token().token {
        Token::EOF => Ok(ast),
        other => not_pure("the text goes on", other),
    }
}

/// Functions whose answer changes while nothing else does.
const CLOCKS: &[&str] = &[
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "clock_timestamp",
    "timeofday",
    "age",
    "current_date",
    "current_time",
    "current_timestamp",
    "localtime",
    "localtimestamp",
    "random",
    "gen_random_uuid",
    "pg_current_xact_id",
    "txid_current",
];

fn is_clock(name: &str) -> bool {
    CLOCKS.contains(&name.to_ascii_lowercase().as_str())
}

/// For the reason only: whatever else is in the way, this is what people look for.
fn mentions_clock(ast: &Ast) -> bool {
    let text = ast.to_string().to_ascii_lowercase();
    text.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '(')).any(|word| {
        match word.strip_suffix('(') {
            Some(function) => is_clock(function),
            None => word.starts_with("current_") && is_clock(word),
        }
    })
}

/// Functions that a text refers to.
type Names<'a> = Option<&'a BTreeSet<u32>>;
