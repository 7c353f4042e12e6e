//! The loadable form of `magray-embed-candle`: nothing but the exported symbols.
magray_plugin_api::export_plugin!(magray_embed_candle::PLUGIN);
