use std::sync::{Mutex, OnceLock, PoisonError};

/// A place for a value that is made when it is first wanted, by one thread while the others wait. Where that
/// fails, whoever waits tries for itself.
#[derive(Debug)]
pub struct Once<T> {
    value: OnceLock<T>,
    making: Mutex<()>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self { value: OnceLock::new(), making: Mutex::new(()) }
    }
}

impl<T> Once<T> {
    /// The value, if it was made. Waits for nobody.
    pub fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// The value, made by `make` where it was not; `make` must not want it itself.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get_or_try_make<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        // One who has panicked has made nothing.
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let value = make()?;
        Ok(self.value.get_or_init(|| value))
    }
}
