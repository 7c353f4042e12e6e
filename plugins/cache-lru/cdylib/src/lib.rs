//! The loadable form of `magray-cache-lru`: nothing but the exported symbols.
magray_plugin_api::export_plugin!(magray_cache_lru::PLUGIN);
