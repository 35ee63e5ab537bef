//! Core: real programs at work in a mount, and the daemon killed under them. Each suite runs as
//! long as `fixture::Rounds` says and prints its seeds.

mod crash;
mod dead;
mod oracle;
mod postgres;
mod programs;
mod space;
mod sqlite;
