//! The one integration binary.

mod fetch;
mod objects;
mod scan;
