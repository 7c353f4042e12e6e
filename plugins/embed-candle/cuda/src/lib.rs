//! `magray-embed-candle` for NVIDIA GPUs: nothing but the exported symbols.
magray_plugin_api::export_plugin!(magray_embed_candle::PLUGIN);
