//! From nothing to a plugin in use: what `magray plugin new` writes builds, conforms, and works.
use crate::support::Home;
#[test]
fn names() { let _ = Home::new(); }
