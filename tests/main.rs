//! The real binary with real plugin libraries, as a user runs it. One test program, so that it is
//! linked once.
mod backup;
mod bad_input;
mod bench_index;
mod cache;
mod candle;
mod cli;
mod config;
mod crash;
mod damage;
mod disk;
mod embed;
mod evolution;
mod examples;
mod fallback;
mod gpu;
mod hub;
mod model_import;
mod model_pull;
mod onnx;
mod plugin_zoo;
mod quality;
mod reembed;
mod support;
mod swap;
mod sync;
mod tiny_model;
