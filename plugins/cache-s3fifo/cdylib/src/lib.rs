//! The loadable form of `magray-cache-s3fifo`: nothing but the exported symbols.
magray_plugin_api::export_plugin!(magray_cache_s3fifo::PLUGIN);
