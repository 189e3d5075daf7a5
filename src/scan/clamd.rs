//! clamd over INSTREAM. Our own few lines instead of a crate: the reply must be read even when
//! the daemon has reset the stream ("size limit exceeded"), and it must be read exactly.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

const PIECE: usize = 64 << 10;
const LONGEST_REPLY: u64 = 4096;
const CONNECT: Duration = Duration::from_secs(5);

/// Where clamd listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(String),
    Unix(PathBuf),
}

/// What clamd's reply means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    Infected(String),
    Unscannable(String),
}

/// No verdict; another time there may be one.
#[derive(Debug, thiserror::Error)]
pub enum ClamdError {
    #[error("clamd cannot be reached: {0}")]
    Connection(#[from] io::Error),
    #[error("clamd did not answer in time")]
    Timeout,
    #[error("clamd's answer is not a verdict: {0:?}")]
    Reply(String),
}

impl Address {
    /// `unix:/path` or `host:port`; `None` if it is neither.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty()).then(|| Self::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        (!host.is_empty() && port.parse::<u16>().is_ok()).then(|| Self::Tcp(text.to_owned()))
    }

    async fn connect(&self) -> Result<Box<dyn Wire>, ClamdError> {
        let dial = async {
            Ok::<Box<dyn Wire>, io::Error>(match self {
                Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
                Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            })
        };
        Ok(tokio::time::timeout(CONNECT, dial).await.map_err(|_| ClamdError::Timeout)??)
    }

    /// The daemon's own words on engine and database version.
    pub(super) async fn version(&self, patience: Duration) -> Result<String, ClamdError> {
        let ask = async {
            let mut wire = self.connect().await?;
            wire.write_all(b"zVERSION\0").await?;
            let reply = reply(&mut wire).await?;
            match reply.strip_suffix(b"\0").and_then(|r| std::str::from_utf8(r).ok()) {
                Some(text) if text.starts_with("ClamAV ") => Ok(text.to_owned()),
                _ => Err(unclear(&reply)),
            }
        };
        tokio::time::timeout(patience, ask).await.unwrap_or(Err(ClamdError::Timeout))
    }

    /// Streams the file through clamd.
    pub(super) async fn scan(&self, file: &Path, patience: Duration) -> Result<Verdict, ClamdError> {
        tokio::time::timeout(patience, self.instream(file)).await.unwrap_or(Err(ClamdError::Timeout))
    }

    async fn instream(&self, file: &Path) -> Result<Verdict, ClamdError> {
        let mut file = tokio::fs::File::open(file).await?;
        let mut wire = self.connect().await?;
        let sent = send(&mut file, &mut wire).await;
        // Also after a failed write: a daemon that hangs up has mostly said why.
        let answer = reply(&mut wire).await;
        match (sent, answer) {
            (_, Ok(bytes)) if !bytes.is_empty() => read(&bytes),
            (Err(e), _) | (Ok(()), Err(e)) => Err(e.into()),
            (Ok(()), Ok(_)) => Err(ClamdError::Reply(String::new())),
        }
    }
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

async fn send(file: &mut tokio::fs::File, wire: &mut Box<dyn Wire>) -> io::Result<()> {
    wire.write_all(b"zINSTREAM\0").await?;
    let mut piece = vec![0; PIECE];
    loop {
        let n = file.read(&mut piece).await?;
        wire.write_all(&(n as u32).to_be_bytes()).await?;
        if n == 0 {
            return wire.flush().await;
        }
        wire.write_all(&piece[..n]).await?;
    }
}

async fn reply(wire: &mut Box<dyn Wire>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match wire.take(LONGEST_REPLY).read_to_end(&mut bytes).await {
        // A reset behind a whole reply takes nothing from it.
        Err(_) if bytes.ends_with(b"\0") => Ok(bytes),
        Err(e) => Err(e),
        Ok(_) => Ok(bytes),
    }
}

fn unclear(reply: &[u8]) -> ClamdError {
    ClamdError::Reply(String::from_utf8_lossy(reply).into_owned())
}

/// Clean is exactly one reply. What is cut, doubled or new is no verdict.
fn read(reply: &[u8]) -> Result<Verdict, ClamdError> {
    let whole = reply.strip_suffix(b"\0").and_then(|r| std::str::from_utf8(r).ok());
    let Some(text) = whole else { return Err(unclear(reply)) };
    if text == "stream: OK" {
        return Ok(Verdict::Ok);
    }
    if let Some(name) = text.strip_prefix("stream: ").and_then(|rest| rest.strip_suffix(" FOUND")) {
        let beyond = name.starts_with("Heuristics.Limits.") || name.starts_with("Heuristics.Encrypted.");
        let name = name.to_owned();
        return Ok(if beyond { Verdict::Unscannable(name) } else { Verdict::Infected(name) });
    }
    if text.contains("size limit exceeded") && text.ends_with("ERROR") {
        return Ok(Verdict::Unscannable(text.to_owned()));
    }
    Err(unclear(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_reply_is_ok() {
        assert_eq!(read(b"stream: OK\0").unwrap(), Verdict::Ok);
        for reply in [
            &b""[..],
            b"\0",
            b"stream: OK",
            b"stream: OK\n",
            b"stream: OK\0\0",
            b"stream: OK\0stream: OK\0",
            b"OK\0",
            b"stream:OK\0",
            b"STREAM: OK\0",
            b" stream: OK\0",
            b"stream: NOT OK\0",
            b"stream: OK FOUN\0",
            b"UNKNOWN COMMAND\0",
            b"stream: Can't allocate memory ERROR\0",
            b"\xff\xfe\0",
        ] {
            assert!(read(reply).is_err(), "{:?}", String::from_utf8_lossy(reply));
        }
    }

    #[test]
    fn findings_and_limits_are_told_apart() {
        let infected = Verdict::Infected("Win.Test.EICAR_HDB-1".to_owned());
        assert_eq!(read(b"stream: Win.Test.EICAR_HDB-1 FOUND\0").unwrap(), infected);
        for reply in [
            &b"stream: Heuristics.Limits.Exceeded.MaxFiles FOUND\0"[..],
            b"stream: Heuristics.Encrypted.Zip FOUND\0",
            b"INSTREAM size limit exceeded. ERROR\0",
        ] {
            assert!(matches!(read(reply).unwrap(), Verdict::Unscannable(_)));
        }
    }

    #[test]
    fn addresses_are_a_host_with_port_or_a_socket() {
        assert_eq!(Address::parse("clamav:3310"), Some(Address::Tcp("clamav:3310".to_owned())));
        assert_eq!(Address::parse("unix:/run/c.sock"), Some(Address::Unix("/run/c.sock".into())));
        for wrong in ["", "clamav", ":3310", "clamav:", "clamav:x", "unix:", "clamav:99999"] {
            assert_eq!(Address::parse(wrong), None, "{wrong}");
        }
    }
}
