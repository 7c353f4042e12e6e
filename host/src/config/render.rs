use super::{
    Resolved,
    tree::{Node, Tree},
};
use std::fmt::Write;

/// The configuration in force as a TOML document, each key with a comment that says where its value
/// comes from.
pub fn render_resolved(resolved: &Resolved) -> String {
    let mut text = String::new();
    table(&resolved.tree, &mut String::new(), &mut text);
    text
}

fn table(node: &Node, path: &mut String, text: &mut String) {
    let Tree::Table(entries) = &node.tree else { return };
    let (tables, values): (Vec<_>, Vec<_>) = entries.iter().partition(|(_, node)| node.is_table());
    if !values.is_empty() {
        if !path.is_empty() {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}[{path}]");
        }
        for (key, node) in values {
            let _ = writeln!(text, "{} = {}  # {}", quoted(key), node.to_value(), one_line(&node.origin));
        }
    }
    for (key, node) in tables {
        let parent = path.len();
        if parent > 0 {
            path.push('.');
        }
        path.push_str(&quoted(key));
        table(node, path, text);
        path.truncate(parent);
    }
}

/// A key as TOML writes it.
fn quoted(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if bare { key.to_owned() } else { format!("\"{}\"", key.chars().map(escaped).collect::<String>()) }
}

fn escaped(c: char) -> String {
    match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    }
}

/// A comment ends with its line, and a path may hold any character.
fn one_line(origin: &impl ToString) -> String {
    origin.to_string().replace(char::is_control, "?")
}
