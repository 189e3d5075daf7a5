//! Tests that start processes or fill disks: one at a time.

mod disk;
mod poison;
mod postgres;
mod stop;
