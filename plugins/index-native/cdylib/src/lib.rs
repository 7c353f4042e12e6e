//! The loadable form of `magray-index-native`: nothing but the exported symbols.
magray_plugin_api::export_plugin!(magray_index_native::PLUGIN);
