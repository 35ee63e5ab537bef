//! Core: the emulators themselves, checked by other means than those they are made of: OpenSSL
//! where they use the product's code, the product's code where they use OpenSSL, and real data.

mod chain;
mod lies;
mod program;
mod releases;
mod reports;
mod support;
mod tokens;
mod wire;
