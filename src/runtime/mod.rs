//! (coming)

pub mod embedded_s3;
