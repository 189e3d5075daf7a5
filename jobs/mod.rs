//! The kinds of work, one file each; `runtime::registry` lists them for the worker.
//!
//! An attachment goes `fetch` → `scan` → `extract` → `embed`; `forget` takes it away again.

pub mod embed;
pub mod extract;
pub mod fetch;
pub mod forget;
pub mod scan;

pub use embed::Embed;
pub use extract::Extract;
pub use fetch::Fetch;
pub use forget::Forget;
pub use scan::Scan;
