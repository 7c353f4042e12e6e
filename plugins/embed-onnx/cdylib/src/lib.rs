//! The loadable form of `magray-embed-onnx`: nothing but the exported symbols.
magray_plugin_api::export_plugin!(magray_embed_onnx::PLUGIN);
