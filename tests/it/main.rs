//! The one integration binary: a module for each part of the worker.

mod extract;
mod hostile;
