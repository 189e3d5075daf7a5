//! `gristmill bench`: what this machine can do, measured on it.

pub mod embed;
