//! The real binary with real plugin libraries, as a user runs it. One test program, so that it is
//! linked once.
mod bad_input;
mod cache;
mod candle;
mod cli;
mod config;
mod crash;
mod damage;
mod embed;
mod evolution;
mod examples;
mod fallback;
mod gpu;
mod hub;
mod model_import;
mod model_pull;
mod mortal;
mod onnx;
mod plugin_zoo;
mod quality;
mod reembed;
mod support;
mod swap;
mod tiny_model;
