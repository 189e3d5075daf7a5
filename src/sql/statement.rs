//! Which statements may run: one query that only reads, made of what is known to be harmless.
//!
//! The statement is parsed, judged, written anew, parsed and judged again, and only that second
//! text is sent: comments are gone, and what runs is what was judged. What the parser does not
//! know is refused. This layer is one of several; the role and the transaction stop writes too.

use super::expressions::{is_harmless, is_plain, is_simple};
use super::functions::{is_allowed, is_bounded, is_endless};
use super::target::Engine;
use sqlparser::ast::{
    AccessExpr, BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident,
    ObjectName, ObjectNamePart, Query, Select, SelectFlavor, SelectModifiers, SetExpr, Statement,
    TableFactor, Value, ValueWithSpan, Visit, Visitor,
};
use sqlparser::dialect::{Dialect, MySqlDialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::parser::{Parser, ParserOptions};
use sqlparser::tokenizer::{Token, Tokenizer};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// A longer statement is nobody's question.
const LONGEST: usize = 32 << 10;
/// Tokens bound how deep a syntax tree can be, and so the stack that reads it.
const MOST_TOKENS: usize = 4_000;
const DEEPEST: usize = 64;
/// The largest count given to a function that makes texts of a length.
const LONGEST_PADDING: u64 = 10_000;
/// The longest pattern of LIKE and GLOB where nothing can interrupt the comparison.
const LONGEST_PATTERN: usize = 200;
/// What of `information_schema` tells of tables and not of people.
const INFORMATION: [&str; 9] = [
    "tables",
    "columns",
    "views",
    "schemata",
    "statistics",
    "key_column_usage",
    "table_constraints",
    "referential_constraints",
    "constraint_column_usage",
];

/// Why a statement is not run; told to the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Objection {
    #[error("the statement is too long")]
    TooLong,
    #[error("the statement could not be read: {0}")]
    Unreadable(String),
    #[error("only one SELECT statement may be run at a time")]
    NotOneQuery,
    #[error("only reading is allowed here, not {0}")]
    Forbidden(String),
    #[error("the function {0} is not on the list of allowed functions")]
    Function(String),
    #[error(
        "what stands after a dot in the statement may call the function {0}; leave the table's name away"
    )]
    Called(String),
    #[error("the table {0} may not be read")]
    Relation(String),
    #[error("write values into the statement: parameters such as {0} are not filled in")]
    Parameter(String),
}

/// A statement that was judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// What may be sent in place of the statement.
    pub text: String,
    /// What Postgres may take for functions: `x.f` is `f(x)` where x has no column f. Only the
    /// database knows; it is asked before the text is sent.
    pub fields: BTreeSet<String>,
}

impl Written {
    /// A text that nobody judges.
    pub(super) fn ours(text: &str) -> Self {
        Self { text: text.to_owned(), fields: BTreeSet::new() }
    }
}

/// What may be sent in place of `sql`.
pub(super) fn judge(engine: Engine, sql: &str) -> Result<Written, Objection> {
    let text = parse(engine, sql)?.0.to_string();
    let (again, fields) = parse(engine, &text)?;
    // A text that does not read as it was written is not understood well enough.
    if again.to_string() == text {
        Ok(Written { text, fields })
    } else {
        Err(Objection::Unreadable("it is ambiguous".to_owned()))
    }
}

fn parse(engine: Engine, sql: &str) -> Result<(Query, BTreeSet<String>), Objection> {
    if sql.len() > LONGEST {
        return Err(Objection::TooLong);
    }
    let dialect: &dyn Dialect = match engine {
        Engine::Postgres => &PostgreSqlDialect {},
        Engine::MySql => &MySqlDialect {},
        Engine::Sqlite => &SQLiteDialect {},
    };
    let unreadable = |why: String| Objection::Unreadable(why);
    let tokens = Tokenizer::new(dialect, sql)
        .with_unescape(false)
        .tokenize_with_location()
        .map_err(|fault| unreadable(fault.to_string()))?;
    let told = tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).count();
    if told > MOST_TOKENS {
        return Err(Objection::TooLong);
    }
    let mut statements = Parser::new(dialect)
        .with_options(ParserOptions { unescape: false, ..ParserOptions::new() })
        .with_recursion_limit(DEEPEST)
        .with_tokens_with_locations(tokens)
        .parse_statements()
        .map_err(|fault| unreadable(fault.to_string()))?;
    let mut judge = Judge { engine, fields: BTreeSet::new() };
    match (statements.pop(), statements.is_empty()) {
        (Some(Statement::Query(query)), true) => match query.visit(&mut judge) {
            ControlFlow::Continue(()) => Ok((*query, judge.fields)),
            ControlFlow::Break(objection) => Err(objection),
        },
        _ => Err(Objection::NotOneQuery),
    }
}

type Verdict = ControlFlow<Objection>;

fn forbidden(what: &str) -> Verdict {
    ControlFlow::Break(Objection::Forbidden(what.to_owned()))
}

struct Judge {
    engine: Engine,
    fields: BTreeSet<String>,
}

impl Visitor for Judge {
    type Break = Objection;

    /// The query itself is no statement here: any that is found stands where data is changed.
    fn pre_visit_statement(&mut self, _: &Statement) -> Verdict {
        forbidden("a statement within the query")
    }

    fn pre_visit_query(&mut self, query: &Query) -> Verdict {
        let Query {
            with: _,
            body,
            order_by: _,
            limit_clause: _,
            fetch: _,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        if !locks.is_empty() {
            return forbidden("locking rows (FOR UPDATE, FOR SHARE)");
        }
        if for_clause.is_some() || settings.is_some() || format_clause.is_some() || !pipe_operators.is_empty()
        {
            return forbidden("FOR, SETTINGS, FORMAT or pipes");
        }
        set_expression(body)
    }

    fn pre_visit_select(&mut self, select: &Select) -> Verdict {
        let Select {
            select_token: _,
            optimizer_hints,
            distinct: _,
            select_modifiers,
            top,
            top_before_distinct: _,
            projection: _,
            exclude,
            into,
            from: _,
            lateral_views,
            prewhere,
            selection: _,
            connect_by,
            group_by: _,
            cluster_by,
            distribute_by,
            sort_by,
            having: _,
            named_window: _,
            qualify,
            window_before_qualify: _,
            value_table_mode,
            flavor,
        } = select;
        if into.is_some() {
            return forbidden("SELECT INTO");
        }
        let odd = !optimizer_hints.is_empty()
            || select_modifiers.as_ref().is_some_and(SelectModifiers::is_any_set)
            || top.is_some()
            || exclude.is_some()
            || !lateral_views.is_empty()
            || prewhere.is_some()
            || !connect_by.is_empty()
            || !cluster_by.is_empty()
            || !distribute_by.is_empty()
            || !sort_by.is_empty()
            || qualify.is_some()
            || value_table_mode.is_some()
            || *flavor != SelectFlavor::Standard;
        if odd { forbidden("this form of SELECT") } else { ControlFlow::Continue(()) }
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> Verdict {
        let Some(parts) = words(name, folded) else { return forbidden("a computed name") };
        let (table, schema) = match &parts[..] {
            [table] => (table, None),
            [.., schema, table] => (table, Some(schema.as_str())),
            [] => return forbidden("a table without a name"),
        };
        let is_open = match (self.engine, schema) {
            (_, Some("information_schema")) => INFORMATION.contains(&table.as_str()),
            (Engine::Postgres, Some(schema)) => !schema.starts_with("pg_") && !table.starts_with("pg_"),
            (Engine::Postgres, None) => !table.starts_with("pg_"),
            (Engine::MySql, Some(schema)) => !matches!(schema, "mysql" | "performance_schema" | "sys"),
            // Virtual tables of these names reach beyond the file's own data.
            (Engine::Sqlite, _) => {
                !table.starts_with("pragma_")
                    && !table.starts_with("sqlite_dbpage")
                    && !matches!(table.as_str(), "dbstat" | "bytecode" | "tables_used" | "completion")
            }
            (Engine::MySql, None) => true,
        };
        if is_open {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(Objection::Relation(parts.join(".")))
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Verdict {
        match factor {
            TableFactor::Table { name, args, with_hints, version, partitions, json_path, sample, .. } => {
                let odd = !with_hints.is_empty()
                    || version.is_some()
                    || !partitions.is_empty()
                    || json_path.is_some()
                    || sample.is_some();
                match args {
                    _ if odd => forbidden("this form of table"),
                    Some(args) if args.settings.is_some() => forbidden("SETTINGS"),
                    Some(_) => self.function(name),
                    None => ControlFlow::Continue(()),
                }
            }
            TableFactor::Function { name, .. } => self.function(name),
            TableFactor::Derived { sample: None, .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::NestedJoin { .. }
            | TableFactor::JsonTable { .. } => ControlFlow::Continue(()),
            _ => forbidden("this form of table"),
        }
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> Verdict {
        match expression {
            Expr::Function(function) => self.call(function),
            Expr::CompoundIdentifier(parts) => {
                self.fields.extend(parts.last().and_then(|part| self.field(part)));
                ControlFlow::Continue(())
            }
            Expr::CompoundFieldAccess { root, access_chain } if self.engine == Engine::Postgres => {
                self.access(root, access_chain)
            }
            Expr::Like { pattern, .. } | Expr::BinaryOp { op: BinaryOperator::Glob, right: pattern, .. }
                if self.engine == Engine::Sqlite && !is_short_text(pattern) =>
            {
                forbidden("a pattern that is not a short text in the statement")
            }
            Expr::Trim { trim_what, trim_characters, .. }
                if self.engine == Engine::Sqlite && (trim_what.is_some() || trim_characters.is_some()) =>
            {
                forbidden("trimming given characters")
            }
            Expr::BinaryOp { op, .. }
            | Expr::AnyOp { compare_op: op, .. }
            | Expr::AllOp { compare_op: op, .. } => {
                if is_harmless(op) {
                    ControlFlow::Continue(())
                } else {
                    forbidden("this operator")
                }
            }
            Expr::UnaryOp { op, .. } => {
                if is_simple(*op) {
                    ControlFlow::Continue(())
                } else {
                    forbidden("this operator")
                }
            }
            known if is_plain(known) => ControlFlow::Continue(()),
            _ => forbidden("this expression"),
        }
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> Verdict {
        match (&value.value, self.engine) {
            (
                Value::Number(..)
                | Value::SingleQuotedString(_)
                | Value::HexStringLiteral(_)
                | Value::Boolean(_)
                | Value::Null,
                _,
            )
            | (Value::DollarQuotedString(_) | Value::EscapedStringLiteral(_), Engine::Postgres)
            | (Value::DoubleQuotedString(_), Engine::MySql) => ControlFlow::Continue(()),
            (Value::Placeholder(name), _) => ControlFlow::Break(Objection::Parameter(name.clone())),
            _ => forbidden("this kind of literal"),
        }
    }

    /// MySQL's variables are names that begin with an at sign.
    fn pre_visit_ident(&mut self, ident: &Ident) -> Verdict {
        if ident.quote_style.is_none() && ident.value.starts_with(['@', '$', ':']) {
            return forbidden("variables");
        }
        ControlFlow::Continue(())
    }
}

impl Judge {
    /// A name after a dot that may be a function's, as the server reads it.
    fn field(&self, ident: &Ident) -> Option<String> {
        let name = match ident.quote_style {
            Some(quote) => ident.value.replace(&format!("{quote}{quote}"), &quote.to_string()),
            None => ident.value.to_ascii_lowercase(),
        };
        (self.engine == Engine::Postgres && !is_allowed(self.engine, &name)).then_some(name)
    }

    /// Subscripts, and the column's own name before them; a dot after anything else calls.
    fn access(&mut self, root: &Expr, chain: &[AccessExpr]) -> Verdict {
        let is_column = matches!(root, Expr::Identifier(_));
        let name = chain.iter().map_while(|access| match access {
            AccessExpr::Dot(Expr::Identifier(ident)) if is_column => Some(ident),
            _ => None,
        });
        let name: Vec<_> = name.collect();
        if chain[name.len()..].iter().any(|access| matches!(access, AccessExpr::Dot(_))) {
            return forbidden("a dot after an expression, which may call a function; name a table's column");
        }
        self.fields.extend(name.last().and_then(|ident| self.field(ident)));
        ControlFlow::Continue(())
    }

    fn function(&self, name: &ObjectName) -> Verdict {
        let refused = || ControlFlow::Break(Objection::Function(name.to_string()));
        let Some(parts) = words(name, as_the_server) else { return refused() };
        let name = match &parts[..] {
            [name] => name,
            [schema, name] if self.engine == Engine::Postgres && schema == "pg_catalog" => name,
            _ => return refused(),
        };
        if is_allowed(self.engine, name) { ControlFlow::Continue(()) } else { refused() }
    }

    fn call(&self, function: &Function) -> Verdict {
        if function.uses_odbc_syntax || !matches!(function.parameters, FunctionArguments::None) {
            return forbidden("this form of function");
        }
        self.function(&function.name)?;
        let name = words(&function.name, folded).and_then(|mut parts| parts.pop()).unwrap_or_default();
        let given = match &function.args {
            FunctionArguments::List(list) => list.args.len(),
            _ => 0,
        };
        if is_endless(self.engine, &name, given) {
            return ControlFlow::Break(Objection::Function(format!("{name} with {given} arguments")));
        }
        if is_bounded(&name) && !has_small_count(&function.args) {
            return forbidden("a text of a length that is not a small number in the statement");
        }
        ControlFlow::Continue(())
    }
}

/// SQLite compares a pattern in one step, which takes as long as it is.
fn is_short_text(pattern: &Expr) -> bool {
    let Expr::Value(value) = pattern else { return false };
    matches!(&value.value, Value::SingleQuotedString(text) if text.len() <= LONGEST_PATTERN)
}

/// Whether the second argument is a small literal.
fn has_small_count(arguments: &FunctionArguments) -> bool {
    let FunctionArguments::List(list) = arguments else { return false };
    let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(count)))) = list.args.get(1) else {
        return false;
    };
    matches!(&count.value, Value::Number(text, _) if text.parse::<u64>().is_ok_and(|n| n <= LONGEST_PADDING))
}

fn set_expression(body: &SetExpr) -> Verdict {
    match body {
        SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => ControlFlow::Continue(()),
        SetExpr::SetOperation { left, right, .. } => {
            set_expression(left)?;
            set_expression(right)
        }
        // `TABLE name` names a table that no visitor is shown.
        SetExpr::Table(_) => forbidden("TABLE; write SELECT * FROM"),
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            forbidden("a change of data")
        }
    }
}

/// The words of a name, each read by `fold`; `None` where one is computed.
fn words(name: &ObjectName, fold: fn(&Ident) -> String) -> Option<Vec<String>> {
    let word = |part: &ObjectNamePart| match part {
        ObjectNamePart::Identifier(ident) => Some(fold(ident)),
        ObjectNamePart::Function(_) => None,
    };
    name.0.iter().map(word).collect()
}

/// For a list of what is refused: whatever a name could mean.
fn folded(ident: &Ident) -> String {
    ident.value.to_lowercase()
}

/// For a list of what is allowed: a quoted name is what it is, and no other's namesake.
fn as_the_server(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { folded(ident) }
}

#[cfg(test)]
pub(super) mod tests;
