//! `gristmill tool`: tools, their calls and their credentials.

use crate::cli::house::House;
use crate::cli::tool_credential::Credentials;
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub enum Tool {
    #[command(subcommand)]
    Credential(Credentials),
}

impl Tool {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        match self {
            Self::Credential(credentials) => credentials.run(house).await,
        }
    }
}
