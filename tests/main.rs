//! The real binary with real plugin libraries, as a user runs it. One test program, so that it is
//! linked once.
mod bad_input;
mod cache;
mod cli;
mod config;
mod crash;
mod damage;
mod embed;
mod evolution;
mod examples;
mod plugin_zoo;
mod reembed;
mod support;
mod swap;
