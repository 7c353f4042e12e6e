//! What a plugin file says of itself, readable without running it.
//!
//! The manifest is JSON in a section of its own, so that `magray plugin list` can name a plugin,
//! and say why it does not fit, without `dlopen`.
use crate::{ComponentKind, Plugin};
use serde::{Deserialize, Serialize};

/// Bumped on any change that makes older plugins unloadable.
pub const ABI_EPOCH: u32 = 1;
/// The version of this crate, `major.minor.patch`.
pub const API: &str = env!("CARGO_PKG_VERSION");
/// The target triple that this crate is built for.
pub const TARGET: &str = env!("MAGRAY_TARGET");
/// The section that holds the manifest.
pub const SECTION: &str = if cfg!(target_vendor = "apple") { "__magray" } else { ".magray" };

const RUSTC: &str = env!("MAGRAY_RUSTC");
const PANIC: &str = if cfg!(panic = "abort") { "abort" } else { "unwind" };

/// The manifest of a plugin library.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// [`ABI_EPOCH`] of the API that it was built with.
    pub abi_epoch: u32,
    /// Version of the API that it was built with.
    pub api: String,
    /// The plugin's unique name.
    pub id: String,
    /// The plugin's own version.
    pub version: String,
    /// One line about it.
    pub summary: String,
    /// The compiler that built it.
    pub rustc: String,
    /// The target triple that it was built for.
    pub target: String,
    /// `unwind`, or `abort`, which no host loads.
    pub panic: String,
    /// What it offers.
    pub components: Vec<ComponentManifest>,
}

/// One component of a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentManifest {
    /// What it is.
    pub kind: ComponentKind,
    /// The name that a user's TOML gives.
    pub name: String,
    /// JSON Schema of its options.
    pub options: serde_json::Value,
}

impl Manifest {
    /// The manifest of a plugin that is linked in.
    ///
    /// # Errors
    /// Where the plugin's option schema is no JSON.
    pub fn of(plugin: &Plugin) -> serde_json::Result<Self> {
        let mut components = Vec::with_capacity(plugin.components.len());
        for component in plugin.components {
            components.push(ComponentManifest {
                kind: component.maker.kind(),
                name: component.name.to_owned(),
                options: serde_json::from_str(component.options_schema)?,
            });
        }
        Ok(Self {
            abi_epoch: ABI_EPOCH,
            api: API.to_owned(),
            id: plugin.id.to_owned(),
            version: plugin.version.to_owned(),
            summary: plugin.summary.to_owned(),
            rustc: RUSTC.to_owned(),
            target: TARGET.to_owned(),
            panic: PANIC.to_owned(),
            components,
        })
    }
}

/// Length of [`encode`]'s JSON.
#[doc(hidden)]
pub const fn encoded_len(plugin: &Plugin) -> usize {
    write::<0>(plugin).len
}

/// The manifest as JSON, made by the compiler: `N` is [`encoded_len`].
#[doc(hidden)]
pub const fn encode<const N: usize>(plugin: &Plugin) -> [u8; N] {
    write::<N>(plugin).bytes
}

const fn write<const N: usize>(plugin: &Plugin) -> Json<N> {
    let mut json = Json { bytes: [0; N], len: 0 };
    json.raw("{\"abi_epoch\":");
    json.number(ABI_EPOCH);
    json.field("api", API);
    json.field("id", plugin.id);
    json.field("version", plugin.version);
    json.field("summary", plugin.summary);
    json.field("rustc", RUSTC);
    json.field("target", TARGET);
    json.field("panic", PANIC);
    json.raw(",\"components\":[");
    let mut i = 0;
    while i < plugin.components.len() {
        let component = &plugin.components[i];
        json.raw(if i == 0 { "{\"kind\":\"" } else { ",{\"kind\":\"" });
        json.raw(component.maker.kind().name());
        json.raw("\"");
        json.field("name", component.name);
        json.raw(",\"options\":");
        json.raw(component.options_schema);
        json.raw("}");
        i += 1;
    }
    json.raw("]}");
    json
}

/// A JSON writer that the compiler can run; with `N` 0 it only counts.
struct Json<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Json<N> {
    const fn byte(&mut self, byte: u8) {
        if self.len < N {
            self.bytes[self.len] = byte;
        }
        self.len += 1;
    }

    const fn raw(&mut self, text: &str) {
        let mut i = 0;
        while i < text.len() {
            self.byte(text.as_bytes()[i]);
            i += 1;
        }
    }

    const fn number(&mut self, number: u32) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.byte(b'0' + (number % 10) as u8);
    }

    const fn field(&mut self, name: &str, value: &str) {
        self.raw(",\"");
        self.raw(name);
        self.raw("\":\"");
        let mut i = 0;
        while i < value.len() {
            match value.as_bytes()[i] {
                byte @ (b'"' | b'\\') => {
                    self.byte(b'\\');
                    self.byte(byte);
                }
                0..0x20 => self.byte(b' '),
                byte => self.byte(byte),
            }
            i += 1;
        }
        self.raw("\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLUGIN: Plugin =
        Plugin { id: "a", version: "1.2.3", summary: "says \"hello\" \\ and\ngoes", components: &[] };
    const BYTES: [u8; encoded_len(&PLUGIN)] = encode(&PLUGIN);

    #[test]
    fn the_compiled_manifest_is_the_manifest() {
        let read: Manifest = serde_json::from_slice(&BYTES).expect("it is JSON");
        let made = Manifest::of(&PLUGIN).expect("no schema to be wrong");
        assert_eq!(read.summary, "says \"hello\" \\ and goes");
        assert_eq!((read.api, read.rustc, read.target), (made.api, made.rustc, made.target));
        assert_eq!(read.abi_epoch, ABI_EPOCH);
    }
}
