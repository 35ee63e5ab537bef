//! What a volume promises when things go wrong.

mod crash;
mod damage;
mod failure;
mod inline;
