use crate::{Error, ErrorCode, Result};
use abi_stable::std_types::RResult;
use std::{
    any::Any,
    cell::{Cell, RefCell},
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    panic::{self, AssertUnwindSafe},
};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `body`, turning a panic into [`ErrorCode::PANICKED`], so that none crosses the boundary.
pub fn catch<T>(body: impl FnOnce() -> Result<T>) -> RResult<T, Error> {
    DEPTH.set(DEPTH.get() + 1);
    let result = panic::catch_unwind(AssertUnwindSafe(body));
    DEPTH.set(DEPTH.get() - 1);
    match result {
        Ok(result) => result.into(),
        Err(payload) => RResult::RErr(describe(payload)),
    }
}

/// Holds an author's value whose `Drop` may panic; abi_stable would end the process.
pub(super) struct Guarded<T>(ManuallyDrop<T>);

impl<T> Guarded<T> {
    pub(super) fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let dropped = catch(|| {
            // SAFETY: this runs once, and nothing uses the value after it.
            unsafe { ManuallyDrop::drop(&mut self.0) };
            Ok(())
        });
        if let RResult::RErr(error) = dropped {
            tracing::error!("a component panicked while it was dropped: {}", error.message());
        }
    }
}

#[cold]
fn describe(payload: Box<dyn Any + Send>) -> Error {
    let message = LAST_PANIC.take().unwrap_or_else(|| text(&*payload).to_owned());
    // The payload is the author's value and its Drop may panic again.
    if let Err(second) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    Error::new(ErrorCode::PANICKED, message)
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

/// Keeps the place of a panic inside [`catch`] for its error instead of printing it. A panic
/// outside, on a thread of the plugin's own, goes to `elsewhere`.
///
/// A `cdylib` has its own copy of `std`, so a plugin's hook sees this plugin's panics and no others.
pub fn keep_panic_messages(elsewhere: impl Fn(&str) + Send + Sync + 'static) {
    panic::set_hook(Box::new(move |info| {
        let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
        let message = format!("{}{}", text(info.payload()), place.unwrap_or_default());
        if DEPTH.get() > 0 {
            LAST_PANIC.with_borrow_mut(|last| *last = Some(message));
        } else {
            elsewhere(&message);
        }
    }));
}
