//! The kinds of work, one file each; `runtime::registry` lists them for the worker.
//!
//! An attachment goes `fetch` → `scan` → `extract` → `embed`; `forget` takes it away again.
//! `tool_call` runs what a model asked for.
//! `authenticate` and `connect` are steps of those that call tools.
//! `tidy`, `rescan`, `usage_rollup` and `tool_sync` come by the clock, for all tenants.

pub mod authenticate;
pub mod connect;
pub mod embed;
pub mod extract;
pub mod fetch;
pub mod forget;
pub mod rescan;
pub mod scan;
pub mod tidy;
pub mod tool_call;
pub mod tool_sync;
pub mod usage_rollup;

pub use embed::Embed;
pub use extract::Extract;
pub use fetch::Fetch;
pub use forget::Forget;
pub use rescan::Rescan;
pub use scan::Scan;
pub use tidy::Tidy;
pub use tool_call::ToolCall;
pub use tool_sync::ToolSync;
pub use usage_rollup::UsageRollup;
