//! `gristmill tool`: tools, their calls and their credentials.

use crate::cli::house::House;
use crate::cli::tool_credential::Credentials;
use crate::cli::tool_login::Login;
use crate::cli::tool_review::Reviews;
use crate::cli::tool_server::{Servers, Sync};
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub enum Tool {
    #[command(subcommand)]
    Credential(Credentials),
    /// Lets a user consent, in a browser, to calls of a server's tools in their name.
    Login(Login),
    #[command(subcommand)]
    Server(Servers),
    Sync(Sync),
    #[command(subcommand)]
    Review(Reviews),
}

impl Tool {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        match self {
            Self::Credential(credentials) => credentials.run(house).await,
            Self::Login(login) => login.run(house).await,
            Self::Server(servers) => servers.run(house).await,
            Self::Sync(sync) => sync.run(house).await,
            Self::Review(reviews) => reviews.run(house).await,
        }
    }
}
