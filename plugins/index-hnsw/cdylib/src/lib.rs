//! The loadable form of `magray-index-hnsw`: nothing but the exported symbols.
magray_plugin_api::export_plugin!(magray_index_hnsw::PLUGIN);
