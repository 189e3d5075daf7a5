//! The one integration binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "a test neither cancels a begin nor serves strangers")]

mod api;
mod chaos;
mod child;
mod cli;
mod controls;
mod crash;
mod credentials;
mod doctor;
mod embed;
mod extract;
mod faults;
mod fetch;
mod ground;
mod heavy;
mod helper_programs;
mod hostile;
mod ingest;
mod kit;
mod limits;
mod mcp;
mod model;
mod oauth;
mod objects;
mod operate;
mod payloads;
mod queue;
mod relay;
mod retrieval;
mod scan;
mod schedules;
mod schema;
mod search;
mod tidy;
mod tool_call;
mod tool_sync;
mod verify;
mod wire;
mod world;
