//! Calls: what is built in, what reads the token, and helper functions.

use sqlparser::ast::{Expr as Ast, Function as Call, FunctionArg, FunctionArgExpr, FunctionArguments};

use super::literal;
use super::scope::identifier;
use super::select::Select;
use super::typed::{Typed, Val};
use super::{Compiler, NotPure, Result, is_clock, not_pure};
use crate::catalog::Function;
use crate::pgtype::oid;
use crate::policy::bodies;
use crate::policy::rule::{Expr, Scalar};
use crate::policy::term::{Elements, Setting, Term};

impl<'a> Compiler<'a> {
    /// A function of `pg_catalog` (folded name) and its arguments, if the call has nothing else in it.
    pub(super) fn builtin<'q>(&self, call: &'q Call) -> Option<(String, Vec<&'q Ast>)> {
        let (schema, name) = name(call)?;
        if !matches!(schema, None | Some("pg_catalog")) {
            return None;
        }
        Some((name.to_ascii_lowercase(), arguments(call)?))
    }

    pub(super) fn call(&mut self, call: &Call) -> Result<Typed> {
        if let Some(value) = self.keyword(call)? {
            return Ok(value);
        }
        let Some((schema, function)) = name(call) else { return not_pure("a function", call) };
        let Some(list) = arguments(call) else { return not_pure("a call of another form", call) };
        if matches!(schema, None | Some("pg_catalog")) {
            let name = function.to_ascii_lowercase();
            match (name.as_str(), &list[..]) {
                ("coalesce", [_, ..]) => return self.coalesce(&list),
                ("nullif", [value, other]) => return self.null_if(value, other),
                ("current_setting", [name]) => return self.setting(name, call),
                ("current_setting", [name, missing]) if is_boolean(missing) => return self.setting(name, call),
                ("jsonb_array_elements_text" | "json_array_elements_text", _) => {
                    return not_pure("a set where a value is wanted", call);
                }
                _ if self.topic.is_some()
                    && let Some(value) = self.of_topic(&name, &list, true)? =>
                {
                    return Ok(value);
                }
                _ if is_clock(&name) => return not_pure("it reads the clock or chance", call),
                _ => {}
            }
        }
        let function = self.function(call)?;
        if function.returns_set {
            return not_pure("a set where a value is wanted", call);
        }
        if list.is_empty()
            && let Some(term) = bodies::known(function)
        {
            return Ok(Typed::term(term));
        }
        let arguments = list.iter().map(|argument| self.scalar(argument)).collect::<Result<_>>()?;
        self.inlined(function, arguments)
    }

    /// A call that yields rows: a list from the token, or a helper function.
    pub(super) fn set(&mut self, ast: &Ast) -> Result<Option<Select>> {
        use sqlparser::ast::CastKind;
        match ast {
            Ast::Nested(inner) => self.set(inner),
            Ast::Cast { kind: CastKind::DoubleColon | CastKind::Cast, expr, data_type, format: None } => {
                let Some(mut set) = self.set(expr)? else { return Ok(None) };
                let target = self.target(data_type).filter(|target| !target.domain);
                let (Some(target), [output]) = (target, &mut set.outputs[..]) else {
                    return not_pure("a cast", ast);
                };
                *output = self.cast(output.clone(), target.oid, target.sized)?;
                Ok(Some(set))
            }
            Ast::Function(call) => {
                if let Some((name, list)) = self.builtin(call)
                    && matches!(name.as_str(), "jsonb_array_elements_text" | "json_array_elements_text")
                    && let [argument] = &list[..]
                {
                    let Val::Term(term) = self.scalar(argument)?.val else {
                        return not_pure("elements of something that is not the token's", call);
                    };
                    if term.term_type().oid() != if name.starts_with("jsonb") { oid::JSONB } else { oid::JSON } {
                        return not_pure("elements of something that is not JSON", call);
                    }
                    let list = Term::Elements(Box::new(term), Elements::Texts);
                    let output = Typed { val: Val::Element(list.clone()), ..Typed::term(list) };
                    let none = Vec::new();
                    return Ok(Some(Select {
                        slots: Vec::new(),
                        conditions: none,
                        outputs: vec![output],
                        first_only: false,
                    }));
                }
                let Some(list) = arguments(call) else { return Ok(None) };
                let Ok(function) = self.function(call) else { return Ok(None) };
                if !function.returns_set {
                    return Ok(None);
                }
                let arguments = list.iter().map(|argument| self.scalar(argument)).collect::<Result<_>>()?;
                self.inlined_rows(function, arguments).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The function that is called, if it can be only one, and the role may call it.
    fn function(&self, call: &Call) -> Result<&'a Function> {
        let refused = |what: &str| not_pure(what, call);
        let (Some((schema, name)), Some(list)) = (name(call), arguments(call)) else { return refused("a function") };
        let catalog = self.catalog;
        let candidates: Vec<&'a Function> = match (self.env.functions, schema) {
            (Some(oids), Some(schema)) => oids
                .iter()
                .filter_map(|oid| catalog.function(*oid))
                .filter(|f| f.schema == schema && f.name == name)
                .map(|f| &**f)
                .collect(),
            (None, Some(schema)) => catalog.functions_named(schema, name).map(|f| &**f).collect(),
            // A body that is kept parsed is printed with a schema before every name, but for those of `pg_catalog`.
            (None, None) if !self.env.source => Vec::new(),
            // That is searched before all others.
            (None, None) if catalog.is_builtin(name) => return refused("a name that pg_catalog has, too"),
            (None, None) => {
                let path = self.env.search_path.filter(|path| !path.iter().any(|schema| schema == "$user"));
                let found = |schema: &String| -> Vec<&'a Function> {
                    catalog.functions_named(schema, name).map(|f| &**f).collect()
                };
                // All schemas count: a better fit in a later one goes before the first one's.
                let seen = |schema: &&String| {
                    *schema != "pg_catalog" && (!self.env.source || catalog.may_use_schema(schema, self.env.role))
                };
                path.into_iter().flatten().filter(seen).flat_map(found).collect()
            }
            (Some(_), None) => Vec::new(),
        };
        if self.env.source && !schema.is_none_or(|schema| catalog.may_use_schema(schema, self.env.role)) {
            return refused("a function of a schema that the role may not use");
        }
        let takes = |f: &&Function| {
            let fewest = f.arguments.len() - self.defaults(f).map_or(0, |all| all.len()).min(f.arguments.len());
            (fewest..=f.arguments.len()).contains(&list.len())
        };
        let mut fitting = candidates.into_iter().filter(takes);
        let (Some(function), None) = (fitting.next(), fitting.next()) else { return refused("the function") };
        if !function.callable {
            return refused("not an ordinary function");
        }
        let role = self.env.role;
        let superuser = self.catalog.role(role).is_some_and(|r| r.superuser);
        if !superuser && function.owner != role && !function.executable_by.contains(role) {
            return refused("a function that the role may not execute");
        }
        if self.catalog.has_foreign_claims() {
            return Err(NotPure("the server's configuration sets a request.jwt setting".into()));
        }
        Ok(function)
    }

    /// `CURRENT_USER` and other functions that are written like a name.
    fn keyword(&self, call: &Call) -> Result<Option<Typed>> {
        if !matches!(call.args, FunctionArguments::None) {
            return Ok(None);
        }
        match call.to_string().to_ascii_lowercase().as_str() {
            "current_user" | "current_role" | "user" => Ok(Some(Typed::constant(oid::NAME, self.env.role))),
            "session_user" => not_pure("the login behind the role", call),
            name if is_clock(name) => not_pure("it reads the clock", call),
            _ => not_pure("a function", call),
        }
    }

    fn setting(&mut self, name: &Ast, call: &Call) -> Result<Typed> {
        let Some(name) = literal::text(name) else { return not_pure("a setting whose name is not a constant", call) };
        for setting in [Setting::Claims, Setting::Subject, Setting::Role] {
            if name == setting.name() {
                return Ok(Typed::term(Term::Setting(setting)));
            }
        }
        // Set together with the claims.
        if name == "role" {
            return Ok(Typed::constant(oid::TEXT, self.role));
        }
        if let Some(topic) = self.topic.filter(|_| name == "realtime.topic") {
            let reference = self.column_ref(0, topic)?;
            return Ok(Typed::scalar(oid::TEXT, Scalar::Column(reference)));
        }
        not_pure("a setting that only the session knows", call)
    }

    /// NULL where an argument is NULL.
    pub(super) fn strict(&mut self, arguments: &[Typed]) -> Result<Vec<Expr>> {
        let mut present = Vec::new();
        for argument in arguments {
            let is_null = self.is_null(argument.clone())?;
            if is_null != Expr::Constant(Some(false)) {
                present.push(Expr::negated(is_null));
            }
        }
        Ok(present)
    }
}

fn is_boolean(ast: &Ast) -> bool {
    matches!(ast.to_string().as_str(), "true" | "false" | "TRUE" | "FALSE")
}

/// Schema and name.
fn name(call: &Call) -> Option<(Option<&str>, &str)> {
    let parts: Vec<_> = call.name.0.iter().map(|part| part.as_ident()).collect::<Option<_>>()?;
    match &parts[..] {
        // COALESCE and NULLIF are printed in capitals.
        [name] if name.quote_style.is_none() && matches!(name.value.as_str(), "COALESCE" | "NULLIF") => {
            Some((None, &name.value))
        }
        [name] => Some((None, identifier(name)?)),
        [schema, name] => Some((Some(identifier(schema)?), identifier(name)?)),
        _ => None,
    }
}

/// The arguments, if the call prints as `name(argument, …)`.
fn arguments(call: &Call) -> Option<Vec<&Ast>> {
    let FunctionArguments::List(list) = &call.args else { return None };
    let one = |argument: &'_ FunctionArg| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(_)) => Some(argument.to_string()),
        _ => None,
    };
    let printed: Vec<String> = list.args.iter().map(one).collect::<Option<_>>()?;
    if call.to_string() != format!("{}({})", call.name, printed.join(", ")) {
        return None;
    }
    let expr = |argument| match argument {
        &FunctionArg::Unnamed(FunctionArgExpr::Expr(ref expr)) => Some(expr),
        _ => None,
    };
    list.args.iter().map(expr).collect()
}
