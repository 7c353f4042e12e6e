/// Makes a `cdylib` a magray plugin.
#[macro_export]
macro_rules! export_plugin {
    ($($all:tt)*) => {};
}
