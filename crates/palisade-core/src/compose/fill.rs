//! Variables filled in, across a whole tree.
//!
//! Keys are left alone, as the Compose Specification says (12-interpolation). What is wrong is told with its place, and
//! never with a variable's value.

use std::collections::HashMap;
use std::sync::Arc;

use super::assemble::Variables;
use super::interpolate::{self, Problem, ProblemKind};
use super::yaml::{Data, Entry, Node, Scalar};
use crate::diagnostic::{Diagnostic, Sink, SourceMap, Span, quoted};

/// The tree with all variables filled in. A value that has a mistake becomes nothing, after it was reported.
///
/// What nobody else holds is changed where it is, without a copy.
pub(crate) fn fill(mut root: Arc<Node>, variables: &Variables, sources: &SourceMap, sink: &mut Sink) -> Arc<Node> {
    Filler { variables, sources, sink, done: HashMap::new() }.node(&mut root);
    root
}

struct Filler<'a> {
    variables: &'a Variables,
    sources: &'a SourceMap,
    sink: &'a mut Sink,
    /// What aliases share is filled in once, and shared again. The old node is kept as well, so that it stays shared
    /// until the last of its places was seen.
    done: HashMap<*const Node, (Arc<Node>, Arc<Node>)>,
}

impl Filler<'_> {
    fn node(&mut self, node: &mut Arc<Node>) {
        if !node.has_variables() {
            return;
        }
        match Arc::get_mut(node) {
            Some(own) => {
                let span = own.span;
                match &mut own.data {
                    Data::Null => {}
                    // A value for a value, so that the weights of all around it stay what they are.
                    Data::Scalar(scalar) => own.data = self.scalar(scalar, span),
                    Data::List(items) => items.iter_mut().for_each(|item| self.node(item)),
                    Data::Map(entries) => entries.iter_mut().for_each(|entry| self.node(&mut entry.value)),
                }
            }
            None => *node = self.shared(node),
        }
    }

    fn shared(&mut self, node: &Arc<Node>) -> Arc<Node> {
        if !node.has_variables() {
            return Arc::clone(node);
        }
        if let Some((_, done)) = self.done.get(&Arc::as_ptr(node)) {
            return Arc::clone(done);
        }
        let filled = match &node.data {
            Data::Null => Arc::clone(node),
            Data::Scalar(scalar) => node.with(self.scalar(scalar, node.span)),
            Data::List(items) => node.with(Data::List(items.iter().map(|item| self.shared(item)).collect())),
            Data::Map(entries) => {
                let filled = entries.iter().map(|entry| Entry { value: self.shared(&entry.value), ..entry.clone() });
                node.with(Data::Map(filled.collect()))
            }
        };
        self.done.insert(Arc::as_ptr(node), (Arc::clone(node), Arc::clone(&filled)));
        filled
    }

    fn scalar(&mut self, scalar: &Scalar, span: Span) -> Data {
        let text = &scalar.text;
        match interpolate::expand(text, &|name| self.variables.get(name)) {
            Ok(expanded) => {
                for variable in expanded.unset {
                    let at = self.sources.find(text, span, &variable);
                    self.sink.push(
                        Diagnostic::warning(
                            "unset-variable",
                            format!("the variable {} is not set, so it is empty here", quoted(&variable)),
                        )
                        .at(at, "")
                        .hint(format!(
                            "set it in the environment or in `.env`, or give a default: `${{{variable}:-…}}`"
                        ))
                        .hint(format!("if a dollar sign is meant, write `$${variable}`")),
                    );
                }
                Data::Scalar(Scalar {
                    text: expanded.text.into(),
                    written: Some(text.as_str().into()),
                    plain: scalar.plain,
                })
            }
            Err(problem) => {
                let at = self.sources.part(text, span, problem.start, problem.end);
                self.sink.push(explain(problem, at));
                Data::Null
            }
        }
    }
}

fn explain(problem: Problem, at: Span) -> Diagnostic {
    match problem.kind {
        ProblemKind::Required { variable, empty, says } => {
            let state = if empty { "empty" } else { "not set" };
            let says = if says.is_empty() { String::new() } else { format!(": {}", quoted(&says)) };
            Diagnostic::error("required-variable", format!("the variable {} is {state}{says}", quoted(&variable)))
                .at(at, "required here")
                .hint(format!("set {variable} in the environment or in `.env`"))
        }
        ProblemKind::LoneDollar => Diagnostic::error("interpolation", "no variable's name follows this `$`")
            .at(at, "")
            .hint("if a dollar sign is meant, write `$$`"),
        ProblemKind::Unclosed => Diagnostic::error("interpolation", "this `${` is never closed")
            .at(at, "")
            .hint("write `${NAME}`, or `$$` if a dollar sign is meant"),
        ProblemKind::NoName => Diagnostic::error("interpolation", "no variable's name follows this `${`")
            .at(at, "")
            .hint("names are letters, digits and `_`, and don't start with a digit"),
        ProblemKind::UnknownOperator => Diagnostic::error("interpolation", "this is none of the forms of a variable")
            .at(at, "")
            .hint("the forms are `${V}`, `${V:-default}`, `${V-default}`, `${V:?error}`, `${V?error}`, `${V:+other}` and `${V+other}`"),
        ProblemKind::TooMuch => {
            Diagnostic::error("interpolation", "the variables in this value nest too deep or make it too long")
                .at(at, "")
                .hint("put the value together outside of the file")
        }
    }
}
