//! Objects in and out of S3: streamed, pinned, counted, hashed.
//!
//! Before it: a job that knows bucket, key and etag. After it: a local file whose size and
//! sha256 are known, or an error that says whether trying again can help.

mod download;
mod error;
mod key;
mod upload;

pub use download::{Landed, Patience, Pin};
pub use error::ObjectError;
pub use key::KeyError;
pub use upload::Uploaded;

use crate::config;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
use aws_smithy_http_client::{Builder, tls};
use error::from_sdk;
use secrecy::ExposeSecret;
use std::time::{Duration, SystemTime};

/// A door to one S3 endpoint with one set of rights.
#[derive(Debug, Clone)]
pub struct Objects {
    client: Client,
    region: String,
    /// AWS wants a location for buckets outside its first region; other servers refuse one.
    aws: bool,
    tenant_prefix: String,
    max_bytes: u64,
    patience: Patience,
}

/// What the store says of an object without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub size: u64,
    pub etag: String,
    pub version_id: Option<String>,
    pub content_type: Option<String>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
    pub etag: Option<String>,
    /// When these bytes were put there, by the store's clock.
    pub modified: Option<SystemTime>,
}

/// One page of a listing.
#[derive(Debug, Clone)]
pub struct Page {
    pub objects: Vec<Listed>,
    /// Asks for the next page, where there is one.
    pub next: Option<String>,
}

impl Objects {
    /// Opens the door `settings` describe; nothing is sent yet.
    ///
    /// Credentials are the two keys of the settings; without them requests go unsigned.
    pub fn new(settings: &config::Objects) -> Result<Self, ObjectError> {
        Self::with_patience(settings, Patience::default())
    }

    /// As [`Objects::new`], with other limits on waiting and resuming.
    pub fn with_patience(settings: &config::Objects, patience: Patience) -> Result<Self, ObjectError> {
        let builder = wire(settings, &patience);
        let builder = match (&settings.access_key, &settings.secret_key) {
            (Some(access), Some(secret)) => builder.credentials_provider(Credentials::new(
                access.expose_secret(),
                secret.expose_secret(),
                None,
                None,
                "gristmill settings",
            )),
            (None, None) => builder.allow_no_auth(),
            _ => return Err(ObjectError::HalfCredentials),
        };
        let aws = settings.endpoint.is_empty();
        let builder = if aws { builder } else { builder.endpoint_url(&settings.endpoint) };
        Ok(Self {
            client: Client::from_conf(builder.build()),
            region: settings.region.clone(),
            aws,
            tenant_prefix: settings.tenant_prefix.clone(),
            max_bytes: settings.max_bytes,
            patience,
        })
    }

    /// Asks for size, etag and version of an object.
    pub async fn head(&self, bucket: &str, key: &str) -> Result<Head, ObjectError> {
        let answer =
            self.client.head_object().bucket(bucket).key(key).send().await.map_err(|e| from_sdk(&e))?;
        Ok(Head {
            size: answer.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or_default(),
            etag: answer.e_tag().unwrap_or_default().to_owned(),
            version_id: answer.version_id().map(str::to_owned),
            content_type: answer.content_type().map(str::to_owned),
        })
    }

    /// Deletes an object; one that is not there counts as deleted.
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<(), ObjectError> {
        match self.client.delete_object().bucket(bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(e) => match from_sdk(&e) {
                ObjectError::Missing => Ok(()),
                other => Err(other),
            },
        }
    }

    /// Every object whose key begins with `prefix`, over all pages.
    pub async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<Listed>, ObjectError> {
        let mut found = Vec::new();
        let mut next = None;
        loop {
            let page = self.page(bucket, prefix, next).await?;
            found.extend(page.objects);
            next = page.next;
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// One page of the objects whose key begins with `prefix`; `after` is the `next` of the page before.
    pub async fn page(&self, bucket: &str, prefix: &str, after: Option<String>) -> Result<Page, ObjectError> {
        let ask = self.client.list_objects_v2().bucket(bucket).prefix(prefix).set_continuation_token(after);
        let answer = ask.send().await.map_err(|e| from_sdk(&e))?;
        let objects = answer.contents().iter().filter_map(|object| {
            Some(Listed {
                key: object.key()?.to_owned(),
                size: object.size().and_then(|n| u64::try_from(n).ok()).unwrap_or_default(),
                etag: object.e_tag().map(str::to_owned),
                modified: object.last_modified().and_then(|at| SystemTime::try_from(*at).ok()),
            })
        });
        let objects = objects.collect();
        Ok(Page { objects, next: answer.next_continuation_token().map(str::to_owned) })
    }

    /// Makes the bucket unless it is there. Safe when several workers start at once.
    pub async fn ensure_bucket(&self, bucket: &str) -> Result<(), ObjectError> {
        if self.bucket_exists(bucket).await? {
            return Ok(());
        }
        let mut wish = self.client.create_bucket().bucket(bucket);
        if self.aws && self.region != "us-east-1" {
            let place = BucketLocationConstraint::from(self.region.as_str());
            wish = wish.create_bucket_configuration(
                CreateBucketConfiguration::builder().location_constraint(place).build(),
            );
        }
        match wish.send().await {
            Ok(_) => Ok(()),
            // Lost the race to another worker, unless the name belongs to somebody else.
            Err(e) => match self.bucket_exists(bucket).await {
                Ok(true) => Ok(()),
                _ => Err(from_sdk(&e)),
            },
        }
    }

    async fn bucket_exists(&self, bucket: &str) -> Result<bool, ObjectError> {
        match self.client.head_bucket().bucket(bucket).send().await {
            Ok(_) => Ok(true),
            Err(e) => match from_sdk(&e) {
                ObjectError::Missing => Ok(false),
                other => Err(other),
            },
        }
    }
}

/// Everything about the connection but its rights and its address.
fn wire(settings: &config::Objects, patience: &Patience) -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(settings.region.clone()))
        .force_path_style(settings.path_style)
        .http_client(
            Builder::new()
                .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
                .build_https(),
        )
        // Many servers that are not AWS stumble over checksum trailers nobody asked for;
        // uploads carry a sha256 or md5 of their own (see `upload`).
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        // `download` has its own, tighter idea of a stall.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .retry_config(
            RetryConfig::standard().with_max_attempts(4).with_initial_backoff(Duration::from_millis(150)),
        )
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_secs(5))
                .read_timeout(patience.answer)
                .build(),
        )
}
