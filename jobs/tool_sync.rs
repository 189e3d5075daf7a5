//! `tool_sync`: to bring the definitions of every tool server up to date, by the clock.
//!
//! This version has no client for tool servers, so there is nothing to ask them with: the schedule
//! is off, and a run that somebody asks for ends among the dead with this reason.

use crate::context::Context;
use crate::job::{Done, Job, JobError, Turn};
use crate::queue::Payload;
use anyhow::anyhow;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Brings every tenant's tool definitions up to date.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ToolSync {}

impl Payload for ToolSync {
    const KIND: &'static str = "tool_sync";
}

impl Job for ToolSync {
    const TIMEOUT: Duration = Duration::from_mins(10);

    async fn run(&self, _: &Context, _: &Turn) -> Result<Done, JobError> {
        let reason = anyhow!("this version has no client for tool servers; leave the schedule off");
        Err(JobError::fatal("no_tool_client", reason))
    }
}
