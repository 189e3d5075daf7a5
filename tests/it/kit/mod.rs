//! The fault kit: what destroys things on purpose, and what looks at the ruins.
//!
//! [`proxy`] stands between a worker and Postgres and acts at the N-th message of the answer;
//! [`process`] is a worker of its own that can be killed, [`worker`] what it runs where the program
//! does not do, [`server`] a Postgres of its own to be killed likewise; [`dump`] is a database as text that
//! two runs of the same work share; [`checks`] are the invariants as SQL; [`guards`]
//! takes one out, to see that it was needed.

pub mod checks;
pub mod database;
pub mod dump;
pub mod guards;
pub mod process;
pub mod proxy;
pub mod server;
pub mod worker;
