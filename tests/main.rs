//! The real binary with real plugin libraries, as a user runs it. One test program, so that it is
//! linked once.
mod bad_input;
mod candle;
mod cli;
mod config;
mod crash;
mod damage;
mod evolution;
mod examples;
mod plugin_zoo;
mod support;
mod swap;
