//! What a volume promises when things go wrong.

mod adversary;
mod block;
mod crash;
mod crash_states;
mod damage;
mod failure;
mod faults;
mod inline;
mod keys;
mod lifetime;
mod log;
mod nonces;
