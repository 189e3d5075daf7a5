//! Bytes from the store into a local file.
//!
//! `send()` resolves when the headers are there, so the SDK's retries know nothing of what
//! happens to the body. A body that is cut or stalls is resumed here, from the byte it broke
//! at, and only while the object is still the pinned one.

use super::error::from_sdk;
use super::{ObjectError, Objects};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::types::ChecksumMode;
use aws_smithy_types::base64;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

/// Which object, and which state of it.
#[derive(Debug, Clone)]
pub struct Pin {
    pub bucket: String,
    pub key: String,
    pub etag: Option<String>,
    pub version_id: Option<String>,
}

/// What now lies in the local file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// The etag of the bytes, for a caller that had none to pin.
    pub etag: Option<String>,
}

/// How long to wait and how often to resume.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A body without a byte for so long has stalled.
    pub stall: Duration,
    /// A request without response headers for so long has failed; uploading counts.
    pub answer: Duration,
    /// Resumptions of one download in all, so a server that always cuts is given up.
    pub resumes: u32,
    /// Pause before the first resumption; doubled for each, up to two seconds.
    pub backoff: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(30),
            answer: Duration::from_mins(1),
            resumes: 8,
            backoff: Duration::from_millis(200),
        }
    }
}

/// How a body ended before its end.
enum Broken {
    /// Worth resuming.
    Cut,
    Stalled,
    Final(ObjectError),
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Final(error.into())
    }
}

struct Landing {
    file: File,
    hasher: Sha256,
    written: u64,
    total: Option<u64>,
    /// The pinned etag, or that of the first answer.
    etag: Option<String>,
    /// The store's own sha256 (base64), which a resumed body is not checked against by the SDK.
    promised: Option<String>,
}

impl Objects {
    /// Streams the pinned object into the file `into`, which is created or overwritten.
    ///
    /// After an error the file holds an unfinished part and must not be read.
    pub async fn download(&self, pin: &Pin, into: &Path) -> Result<Landed, ObjectError> {
        let mut landing = Landing {
            file: File::create(into).await?,
            hasher: Sha256::new(),
            written: 0,
            total: None,
            etag: pin.etag.clone(),
            promised: None,
        };
        let mut resumes = 0;
        loop {
            let broken = match self.stretch(pin, &mut landing).await {
                Ok(()) => break,
                Err(broken) => broken,
            };
            let given_up = resumes >= self.patience.resumes;
            let (at, of) = (landing.written, landing.total);
            match broken {
                Broken::Final(error) => return Err(error),
                Broken::Cut if given_up => return Err(ObjectError::Cut { at, of, resumes }),
                Broken::Stalled if given_up => return Err(ObjectError::Stalled { at, resumes }),
                Broken::Cut | Broken::Stalled => {
                    let pause = self.patience.backoff * 2_u32.pow(resumes.min(6));
                    tokio::time::sleep(pause.min(Duration::from_secs(2))).await;
                    resumes += 1;
                    tracing::debug!(key = pin.key, at, resumes, "download resumed");
                }
            }
        }
        landing.file.flush().await?;
        let sha256 = landing.hasher.finalize();
        if landing.promised.is_some_and(|promised| promised != base64::encode(sha256)) {
            return Err(ObjectError::Corrupt);
        }
        Ok(Landed { size: landing.written, sha256: hex::encode(sha256), etag: landing.etag })
    }

    /// One request: from where the landing stands to the end, or to the next break.
    async fn stretch(&self, pin: &Pin, landing: &mut Landing) -> Result<(), Broken> {
        let mut wish = self
            .client
            .get_object()
            .bucket(&pin.bucket)
            .key(&pin.key)
            .set_if_match(landing.etag.clone())
            .set_version_id(pin.version_id.clone())
            .checksum_mode(ChecksumMode::Enabled);
        if landing.written > 0 {
            wish = wish.range(format!("bytes={}-", landing.written));
        }
        let mut answer = wish.send().await.map_err(|error| match from_sdk(&error) {
            ObjectError::Changed { .. } => {
                Broken::Final(ObjectError::Changed { expected: landing.etag.clone(), found: None })
            }
            other => Broken::Final(other),
        })?;
        self.accept(&answer, landing).await?;
        loop {
            match tokio::time::timeout(self.patience.stall, answer.body.next()).await {
                Err(_) => return Err(Broken::Stalled),
                Ok(Some(Ok(bytes))) => self.take(&bytes, landing).await?,
                // All bytes came and still an error: the SDK found a wrong checksum.
                Ok(Some(Err(_))) if landing.total == Some(landing.written) => {
                    return Err(Broken::Final(ObjectError::Corrupt));
                }
                Ok(None) if landing.total.is_none_or(|total| total == landing.written) => return Ok(()),
                Ok(Some(Err(_)) | None) => return Err(Broken::Cut),
            }
        }
    }

    /// Checks an answer's headers against the pin and against what has landed so far.
    async fn accept(&self, answer: &GetObjectOutput, landing: &mut Landing) -> Result<(), Broken> {
        let found = answer.e_tag();
        // Not every server honours If-Match on GET (s3s-fs does not), so the answer is compared too.
        if let (Some(expected), Some(found)) = (&landing.etag, found)
            && bare(expected) != bare(found)
        {
            let (expected, found) = (Some(expected.clone()), Some(found.to_owned()));
            return Err(Broken::Final(ObjectError::Changed { expected, found }));
        }
        if landing.etag.is_none() {
            landing.etag = found.map(str::to_owned);
        }
        let length = answer.content_length().and_then(|n| u64::try_from(n).ok());
        if landing.written > 0 {
            match answer.content_range() {
                Some(range) if starts_at(range, landing.written) => return Ok(()),
                Some(_) => return Err(Broken::Final(ObjectError::Corrupt)),
                // A server that knows no ranges begins again, and so do we.
                None => landing.begin_again().await?,
            }
        }
        if length.is_some_and(|size| size > self.max_bytes) {
            return Err(Broken::Final(ObjectError::TooLarge { size: length, limit: self.max_bytes }));
        }
        landing.total = length;
        // With parts it is a checksum of checksums, marked by their count.
        landing.promised = answer.checksum_sha256().filter(|sum| !sum.contains('-')).map(str::to_owned);
        Ok(())
    }

    async fn take(&self, bytes: &[u8], landing: &mut Landing) -> Result<(), Broken> {
        let after = landing.written + bytes.len() as u64;
        if after > self.max_bytes {
            return Err(Broken::Final(ObjectError::TooLarge { size: None, limit: self.max_bytes }));
        }
        if landing.total.is_some_and(|total| after > total) {
            return Err(Broken::Final(ObjectError::Corrupt));
        }
        landing.file.write_all(bytes).await?;
        landing.hasher.update(bytes);
        landing.written = after;
        Ok(())
    }
}

impl Landing {
    async fn begin_again(&mut self) -> std::io::Result<()> {
        self.file.set_len(0).await?;
        self.file.rewind().await?;
        self.hasher = Sha256::new();
        self.written = 0;
        Ok(())
    }
}

/// An etag without its quotes: servers and rows disagree about them.
fn bare(etag: &str) -> &str {
    etag.trim_matches('"')
}

fn starts_at(content_range: &str, offset: u64) -> bool {
    content_range
        .strip_prefix("bytes ")
        .and_then(|rest| rest.split('-').next())
        .is_some_and(|first| first.trim().parse() == Ok(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_must_start_where_the_file_ends() {
        assert!(starts_at("bytes 100-199/200", 100));
        assert!(!starts_at("bytes 0-199/200", 100));
        assert!(!starts_at("bytes */200", 100));
        assert!(!starts_at("items 100-199/200", 100));
    }
}
