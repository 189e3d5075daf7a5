//! The catalogue's servers: whether what starts them is here, and on which hosts it was seen.

use super::Findings;
use crate::catalogue::runtimes;
use crate::cli::house::House;
use crate::runtime::hosts;
use crate::store::{mcp_servers, runtime_statuses};
use sqlx::PgConnection;

/// Node and python, which servers are written for; noted for this host where there is a schema.
pub async fn runtimes(house: &House, findings: &mut Findings) {
    for status in hosts::here(&house.settings.mcp.path).await {
        let part = if status.runtime == "node" { "node" } else { "python" };
        match (&status.version, &status.path) {
            (Some(version), Some(path)) => findings.ok(part, format!("v{version} {path}")),
            _ => findings.warning(
                part,
                format!("{part} is not in mcp.path"),
                "MCP servers written for it cannot be started here",
            ),
        }
    }
}

/// Each server that is a program, and what is known of its runtime elsewhere.
pub async fn look(house: &House, conn: &mut PgConnection, findings: &mut Findings) -> sqlx::Result<()> {
    for status in hosts::here(&house.settings.mcp.path).await {
        runtime_statuses::report(&mut *conn, &status).await?;
    }
    let hosts = runtime_statuses::all(&mut *conn).await?;
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for (name, command) in mcp_servers::offered(&mut *conn).await? {
        let Some(command) = command else { continue };
        let runtime = runtimes::wanted(&command);
        let seen = hosts.iter().filter(|status| runtime == Some(&status.runtime) && status.path.is_some());
        let seen: Vec<_> = seen
            .map(|status| {
                format!("{} {} on {}", status.runtime, status.version.as_deref().unwrap_or("?"), status.host)
            })
            .collect();
        match runtimes::find(&command, &house.settings.mcp.path) {
            Some(_) if runtime.is_none() || !seen.is_empty() => {
                there.push(if seen.is_empty() { name } else { format!("{name} ({})", seen.join(", ")) });
            }
            Some(_) => missing.push(format!("{name} needs {}", runtime.unwrap_or("a runtime"))),
            None => missing.push(format!("{name} needs {command}")),
        }
    }
    if !missing.is_empty() {
        let todo =
            "install it where workers run, in a folder of mcp.path; or take the server out of the catalogue";
        findings.warning("servers", missing.join(", "), todo);
    } else if !there.is_empty() {
        findings.ok("servers", there.join(", "));
    }
    Ok(())
}
