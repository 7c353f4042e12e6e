use abi_stable::{StableAbi, std_types::RString};
use std::fmt;

/// The result of every fallible call over the boundary.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in a form that a host can act on.
///
/// An open set: whoever meets a code that it does not know treats it as [`ErrorCode::INTERNAL`].
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// A fault of the plugin that fits no other code.
    pub const INTERNAL: Self = Self(0);
    /// The options of the component are wrong; the message names the key.
    pub const INVALID_CONFIG: Self = Self(1);
    /// An argument of the call is wrong: a length, a NaN, a vector without a direction.
    pub const INVALID_INPUT: Self = Self(2);
    /// The caller cancelled through [`CallContext`](crate::CallContext).
    pub const CANCELLED: Self = Self(3);
    /// The caller's deadline passed.
    pub const DEADLINE: Self = Self(4);
    /// Something that the component needs is not there: a device, a model file, a server.
    pub const UNAVAILABLE: Self = Self(5);
    /// Memory of the host or of the device ran out; a smaller batch may succeed.
    pub const OUT_OF_MEMORY: Self = Self(6);
    /// The component does not do this.
    pub const UNSUPPORTED: Self = Self(7);
    /// A file is damaged or is not what it should be.
    pub const CORRUPT_DATA: Self = Self(8);
    /// The plugin panicked; the boundary sets this code, never an author.
    pub const PANICKED: Self = Self(9);
    /// Reading or writing a file failed.
    pub const IO: Self = Self(10);

    /// The code in words, for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::INVALID_CONFIG => "invalid config",
            Self::INVALID_INPUT => "invalid input",
            Self::CANCELLED => "cancelled",
            Self::DEADLINE => "deadline passed",
            Self::UNAVAILABLE => "unavailable",
            Self::OUT_OF_MEMORY => "out of memory",
            Self::UNSUPPORTED => "unsupported",
            Self::CORRUPT_DATA => "corrupt data",
            Self::PANICKED => "panicked",
            Self::IO => "input/output failed",
            _ => "internal error",
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

/// The one error type of the boundary: a code for the host, a message for the user.
#[repr(C)]
#[derive(StableAbi, Debug, Clone)]
pub struct Error {
    code: ErrorCode,
    message: RString,
}

impl Error {
    /// An error with a message that says what is wrong and, where it can, what to do.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: RString::from(message.into()) }
    }

    /// [`ErrorCode::INVALID_INPUT`] with a message.
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::INVALID_INPUT, message)
    }

    /// Flattens an error and its sources into one message: `outer: inner: innermost`.
    pub fn from_source(code: ErrorCode, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            message.push_str(": ");
            message.push_str(&inner.to_string());
            source = inner.source();
        }
        Self::new(code, message)
    }

    /// The code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The message, without the code.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for Error {}
