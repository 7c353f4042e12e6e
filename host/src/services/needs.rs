//! What a service is made of, by its types.
use super::{Lookup, ServiceError};
use std::any::{TypeId, type_name};

/// Which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub(super) id: TypeId,
    pub(super) name: &'static str,
}

impl Key {
    pub(super) fn of<T: 'static>() -> Self {
        Self { id: TypeId::of::<T>(), name: type_name::<T>() }
    }
}

/// The services that one is made of: a tuple of their types. As a factory is given these and nothing else, who
/// needs whom is known before anything is made.
pub trait Needs: 'static {
    /// A reference to each.
    type Found<'a>;

    /// Which they are.
    fn keys() -> Vec<Key>;

    /// Finds them, and makes those that are not made yet.
    ///
    /// # Errors
    /// Those of their factories.
    fn find<'a, E: From<ServiceError>>(lookup: &Lookup<'a, E>) -> Result<Self::Found<'a>, E>;
}

macro_rules! needs {
    ($($need:ident)*) => {
        impl<$($need: Send + Sync + 'static),*> Needs for ($($need,)*) {
            type Found<'a> = ($(&'a $need,)*);

            fn keys() -> Vec<Key> {
                vec![$(Key::of::<$need>()),*]
            }

            fn find<'a, E: From<ServiceError>>(_lookup: &Lookup<'a, E>) -> Result<Self::Found<'a>, E> {
                Ok(($(_lookup.get::<$need>()?,)*))
            }
        }
    };
}

needs!();
needs!(A);
needs!(A B);
