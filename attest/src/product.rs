//! Core: lines of AMD processors, and how evidence names them.

use std::fmt;

/// A line of processors with roots of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004 (Genoa, Bergamo, Siena share roots).
    Genoa,
    /// EPYC 9005: known by name, not supported.
    Turin,
}

/// CPUID of the processor, from reports of version 3 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuId {
    /// Extended and base family together.
    pub family: u8,
    /// Extended and base model together.
    pub model: u8,
    /// Stepping.
    pub stepping: u8,
}

impl Product {
    /// The product of a processor, or `None` when it is none we know.
    pub fn from_cpuid(cpuid: CpuId) -> Option<Self> {
        match (cpuid.family, cpuid.model) {
            (0x19, 0x00..=0x0F) => Some(Self::Milan),
            (0x19, 0x10..=0x1F | 0xA0..=0xAF) => Some(Self::Genoa),
            (0x1A, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }

    /// The product that the VCEK's product extension names: `Milan-B0`, `Genoa`.
    pub fn from_vcek_name(name: &str) -> Option<Self> {
        let product = name
            .split_once('-')
            .map_or(name, |(product, _stepping)| product);
        [Self::Milan, Self::Genoa, Self::Turin]
            .into_iter()
            .find(|known| known.name() == product)
    }

    /// Name as in AMD's certificates.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
