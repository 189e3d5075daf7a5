//! The place a credential was saved for, in words that compare.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use url::Url;

/// Scheme, host and port of a URL; for a database also its name, which is as much another place.
/// None: it leads nowhere that a credential could be sent to.
pub fn origin_of(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str().filter(|host| !host.is_empty())?;
    match url.scheme() {
        "http" | "https" => Some(url.origin().ascii_serialization()),
        scheme => {
            let (scheme, usual) = match scheme {
                "postgres" | "postgresql" => ("postgres", Some(5432)),
                "mysql" | "mariadb" => ("mysql", Some(3306)),
                other => (other, None),
            };
            let port = url.port().or(usual).map(|port| format!(":{port}")).unwrap_or_default();
            Some(format!("{scheme}://{}{port}{}", host.to_lowercase(), url.path()))
        }
    }
}

/// The place of a server that runs here: its name, and a digest of the command line and of the
/// variables it is given, since under the same name another program, or the same one told to
/// go elsewhere, is another place. A variable without a value is where the credential stands.
pub fn origin_of_program(
    name: &str,
    command: &str,
    arguments: &[String],
    env: &BTreeMap<&str, Option<&str>>,
) -> String {
    // JSON has one reading: no two lists of words look alike in it.
    let told = serde_json::json!([command, arguments, env]).to_string();
    format!("stdio:{name}#{}", hex::encode(&Sha256::digest(told)[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port_however_the_url_is_written() {
        let same = [
            "https://API.example.org/mcp",
            "https://api.example.org:443/other?x=1",
            "https://api.example.org",
        ];
        assert!(same.iter().all(|url| origin_of(url).as_deref() == Some("https://api.example.org")));
        let others = [
            "http://api.example.org/mcp",
            "https://api.example.org:8443/mcp",
            "https://api.example.org.evil.test/",
            "https://evil.test/api.example.org",
            "postgres://api.example.org/a",
            "postgres://api.example.org/b",
        ];
        let all: std::collections::HashSet<_> = others.iter().map(|url| origin_of(url)).collect();
        assert!(all.len() == others.len() && !all.contains(&origin_of(same[0])) && !all.contains(&None));
        assert_eq!(origin_of("mariadb://h/a"), origin_of("mysql://H:3306/a?ssl-mode=disabled"));
        assert_eq!(origin_of("postgresql://h/a").as_deref(), Some("postgres://h:5432/a"));
        assert_eq!(origin_of("nonsense"), None);
        assert_eq!(origin_of("file:///etc/passwd"), None);
    }

    #[test]
    fn another_command_line_or_variable_is_another_place() {
        let one = |arguments: &[&str], env: &[(&'static str, Option<&'static str>)]| {
            let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
            origin_of_program("git", "/usr/bin/x", &arguments, &env.iter().copied().collect())
        };
        assert_ne!(one(&["ab", "c"], &[]), one(&["a", "bc"], &[]));
        assert_eq!(one(&["a"], &[]), one(&["a"], &[]));
        assert_ne!(one(&[], &[("HOST", Some("a"))]), one(&[], &[("HOST", Some("b"))]));
        assert_ne!(one(&[], &[("HOST", None)]), one(&[], &[("HOST", Some(""))]));
    }
}
