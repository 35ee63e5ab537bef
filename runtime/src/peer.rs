//! Core: who is at the other end of a Unix socket, and whether they may come in.

use std::fmt;

/// The process that connected, as the kernel recorded it at `connect` (`SO_PEERCRED`, unix(7)).
///
/// The kernel's word: the peer cannot choose it. It names the process that connected, not whoever
/// holds the descriptor now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id, in our user namespace.
    pub uid: u32,
    /// Effective group id; supplementary groups are not told.
    pub gid: u32,
    /// Process id, in our PID namespace: for logs. `None` for a process outside of it, as another
    /// container of the pod usually is.
    pub pid: Option<i32>,
}

/// Who may use a socket: a peer with any of these user ids or any of these group ids.
///
/// Empty lists admit nobody, root included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedPeers {
    /// User ids.
    pub uids: Vec<u32>,
    /// Group ids.
    pub gids: Vec<u32>,
}

/// A peer that is on the list. Only [`AllowedPeers::admit`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmittedPeer(Peer);

/// A peer that is not on the list.
///
/// A server answers it with its protocol's refusal rather than closing in silence: a wrong user id
/// in a deployment should be easy to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedPeer(Peer);

impl AllowedPeers {
    /// Decides about `peer`.
    pub fn admit(&self, peer: Peer) -> Result<AdmittedPeer, RefusedPeer> {
        if self.uids.contains(&peer.uid) || self.gids.contains(&peer.gid) {
            Ok(AdmittedPeer(peer))
        } else {
            Err(RefusedPeer(peer))
        }
    }
}

impl AdmittedPeer {
    /// The peer.
    #[must_use]
    pub fn peer(self) -> Peer {
        self.0
    }
}

impl RefusedPeer {
    /// The peer.
    #[must_use]
    pub fn peer(self) -> Peer {
        self.0
    }
}

impl fmt::Display for RefusedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "uid {} with gid {} is not allowed on this socket",
            self.0.uid, self.0.gid
        )
    }
}

impl std::error::Error for RefusedPeer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uids: &[u32], gids: &[u32], peer: (u32, u32), admitted: bool) {
        let allowed = AllowedPeers {
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        };
        let peer = Peer {
            uid: peer.0,
            gid: peer.1,
            pid: None,
        };
        let want = if admitted {
            Ok(AdmittedPeer(peer))
        } else {
            Err(RefusedPeer(peer))
        };
        assert_eq!(allowed.admit(peer), want);
    }

    #[test]
    fn either_list_admits_and_nothing_else_does() {
        check(&[1337], &[], (1337, 1), true);
        check(&[], &[7], (1, 7), true);
        check(&[1337], &[7], (1337, 7), true);
        check(&[1337], &[7], (7, 1337), false);
        check(&[1337], &[7], (1338, 8), false);
    }

    #[test]
    fn empty_lists_refuse_even_root() {
        check(&[], &[], (0, 0), false);
    }
}
