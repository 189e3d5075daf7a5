//! The one integration binary.

mod embed;
