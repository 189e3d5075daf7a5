//! How much of an archive is unpacked: counted while inflating, because headers lie.

use crate::config;
use std::io;

/// A ceiling that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    TotalBytes,
    MemberBytes,
    Members,
    Ratio,
    Nesting,
}

impl Limit {
    /// The word that stands in `limits_hit`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::TotalBytes => "total_bytes",
            Self::MemberBytes => "member_bytes",
            Self::Members => "members",
            Self::Ratio => "ratio",
            Self::Nesting => "nesting",
        }
    }
}

/// Why the walk through a file ended early.
#[derive(Debug)]
pub(super) enum Halt {
    Found(String),
    Limit(Limit),
    /// Something that cannot be looked into: encrypted, damaged, packed in an unknown way.
    Opaque(String),
    /// Our own disk, not the file.
    Io(io::Error),
}

impl From<io::Error> for Halt {
    /// Decoders report bad data as I/O errors without a code of the system.
    fn from(error: io::Error) -> Self {
        if error.raw_os_error().is_some() {
            Self::Io(error)
        } else {
            Self::Opaque(format!("damaged: {error}"))
        }
    }
}

/// The ratio counts from this many bytes on: small files compress as they like.
const RATIO_FROM: u64 = 1 << 20;

/// The ceilings of the settings and what was spent of them, over all nesting levels.
#[derive(Debug)]
pub(super) struct Budget<'a> {
    limits: &'a config::Scan,
    /// Size of the file itself: what all inflated bytes are measured against.
    outer: u64,
    inflated: u64,
    members: u64,
}

/// One member's share of the budget.
#[derive(Debug)]
pub(super) struct Share {
    /// Its packed size, where the container bounds it.
    pub packed: Option<u64>,
    /// Whether its bytes count as inflated (those of a tar are there already).
    pub counted: bool,
    /// Whether the ceiling of one member holds (not for the tar inside of a gz).
    pub capped: bool,
}

impl<'a> Budget<'a> {
    pub(super) fn new(limits: &'a config::Scan, outer: u64) -> Self {
        Self { limits, outer, inflated: 0, members: 0 }
    }

    pub(super) fn max_members(&self) -> u64 {
        self.limits.max_members
    }

    /// One more member.
    pub(super) fn member(&mut self) -> Result<(), Halt> {
        self.members += 1;
        if self.members > self.limits.max_members { Err(Halt::Limit(Limit::Members)) } else { Ok(()) }
    }

    /// A container at `depth` inside of the file, whose own depth is 0.
    pub(super) fn nesting(&self, depth: u32) -> Result<(), Halt> {
        if depth > self.limits.max_nesting { Err(Halt::Limit(Limit::Nesting)) } else { Ok(()) }
    }

    /// `new` more bytes of a member that has now `so_far`.
    pub(super) fn bytes(&mut self, new: u64, so_far: u64, share: &Share) -> Result<(), Halt> {
        if share.capped && so_far > self.limits.max_member_bytes {
            return Err(Halt::Limit(Limit::MemberBytes));
        }
        if !share.counted {
            return Ok(());
        }
        self.inflated += new;
        if self.inflated > self.limits.max_total_bytes {
            return Err(Halt::Limit(Limit::TotalBytes));
        }
        let too_dense = |out: u64, packed: u64| {
            out > RATIO_FROM && out > packed.max(1).saturating_mul(self.limits.max_ratio)
        };
        let member_too_dense = share.packed.is_some_and(|packed| too_dense(so_far, packed));
        if member_too_dense || too_dense(self.inflated, self.outer) {
            return Err(Halt::Limit(Limit::Ratio));
        }
        Ok(())
    }
}
