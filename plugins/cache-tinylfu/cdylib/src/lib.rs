//! The loadable form of `magray-cache-tinylfu`: nothing but the exported symbols.
magray_plugin_api::export_plugin!(magray_cache_tinylfu::PLUGIN);
