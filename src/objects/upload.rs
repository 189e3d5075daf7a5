//! A local file into the store: in one piece, or in parts above 16 MiB.
//!
//! Each piece carries a checksum the server compares, so what arrived is what was read.

use super::error::from_sdk;
use super::{Head, ObjectError, Objects};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_smithy_types::base64;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::path::Path;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

/// Also the most that one upload holds in memory. S3 allows 10,000 parts: 156 GiB.
const PART: usize = 16 << 20;

/// What was put, as the store and the bytes themselves tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    pub head: Head,
    /// Lower-case hex.
    pub sha256: String,
}

struct Sent {
    etag: String,
    version_id: Option<String>,
    size: u64,
    hasher: Sha256,
}

impl Objects {
    /// Puts the file `from` under `key`, replacing what was there.
    pub async fn upload(
        &self,
        bucket: &str,
        key: &str,
        from: &Path,
        content_type: Option<&str>,
    ) -> Result<Uploaded, ObjectError> {
        let mut file = File::open(from).await?;
        let size = file.metadata().await?.len();
        if size > self.max_bytes {
            return Err(ObjectError::TooLarge { size: Some(size), limit: self.max_bytes });
        }
        let first = piece(&mut file).await?;
        let sent = if first.len() < PART {
            self.put_whole(bucket, key, first, content_type).await?
        } else {
            self.put_parts((bucket, key), first, &mut file, content_type).await?
        };
        Ok(Uploaded {
            head: Head {
                size: sent.size,
                etag: sent.etag,
                version_id: sent.version_id,
                content_type: content_type.map(str::to_owned),
            },
            sha256: hex::encode(sent.hasher.finalize()),
        })
    }

    async fn put_whole(
        &self,
        bucket: &str,
        key: &str,
        bytes: Bytes,
        content_type: Option<&str>,
    ) -> Result<Sent, ObjectError> {
        let hasher = Sha256::new_with_prefix(&bytes);
        let size = bytes.len() as u64;
        let answer = self
            .client
            .put_object()
            .bucket(bucket)
            .key(key)
            .set_content_type(content_type.map(str::to_owned))
            .checksum_sha256(base64::encode(hasher.clone().finalize()))
            .body(ByteStream::from(bytes))
            .send()
            .await
            .map_err(|e| from_sdk(&e))?;
        Ok(Sent {
            etag: answer.e_tag().unwrap_or_default().to_owned(),
            version_id: answer.version_id().map(str::to_owned),
            size,
            hasher,
        })
    }

    async fn put_parts(
        &self,
        place: (&str, &str),
        first: Bytes,
        file: &mut File,
        content_type: Option<&str>,
    ) -> Result<Sent, ObjectError> {
        let (bucket, key) = place;
        let begun = self
            .client
            .create_multipart_upload()
            .bucket(bucket)
            .key(key)
            .set_content_type(content_type.map(str::to_owned))
            .send()
            .await
            .map_err(|e| from_sdk(&e))?;
        let id = begun.upload_id().unwrap_or_default();
        match self.send_parts(place, id, first, file).await {
            Ok(sent) => Ok(sent),
            Err(error) => {
                // Parts left behind cost storage for ever; the error that counts is the first.
                let undo = self.client.abort_multipart_upload().bucket(bucket).key(key).upload_id(id);
                if let Err(e) = undo.send().await {
                    tracing::warn!(key, "parts of a failed upload stay behind: {}", from_sdk(&e));
                }
                Err(error)
            }
        }
    }

    async fn send_parts(
        &self,
        place: (&str, &str),
        id: &str,
        first: Bytes,
        file: &mut File,
    ) -> Result<Sent, ObjectError> {
        let (bucket, key) = place;
        let (mut hasher, mut size, mut parts, mut bytes) = (Sha256::new(), 0, Vec::new(), first);
        while !bytes.is_empty() {
            hasher.update(&bytes);
            size += bytes.len() as u64;
            if size > self.max_bytes {
                return Err(ObjectError::TooLarge { size: None, limit: self.max_bytes });
            }
            parts.push(self.send_part(place, id, parts.len() + 1, bytes).await?);
            bytes = piece(file).await?;
        }
        let whole = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let done = self
            .client
            .complete_multipart_upload()
            .bucket(bucket)
            .key(key)
            .upload_id(id)
            .multipart_upload(whole)
            .send()
            .await
            .map_err(|e| from_sdk(&e))?;
        let etag = done.e_tag().unwrap_or_default().to_owned();
        Ok(Sent { etag, version_id: done.version_id().map(str::to_owned), size, hasher })
    }

    async fn send_part(
        &self,
        (bucket, key): (&str, &str),
        id: &str,
        number: usize,
        bytes: Bytes,
    ) -> Result<CompletedPart, ObjectError> {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        let answer = self
            .client
            .upload_part()
            .bucket(bucket)
            .key(key)
            .upload_id(id)
            .part_number(number)
            .content_md5(base64::encode(md5::Md5::digest(&bytes)))
            .body(ByteStream::from(bytes))
            .send()
            .await
            .map_err(|e| from_sdk(&e))?;
        Ok(CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag().map(str::to_owned)).build())
    }
}

/// The next [`PART`] bytes, or fewer at the file's end.
async fn piece(file: &mut File) -> std::io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(PART.min(1 << 20));
    file.take(PART as u64).read_to_end(&mut buffer).await?;
    Ok(buffer.into())
}
