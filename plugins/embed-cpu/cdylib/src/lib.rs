//! The loadable form of `magray-embed-cpu`: nothing but the exported symbols.
magray_plugin_api::export_plugin!(magray_embed_cpu::FULL_PLUGIN);
