//! Core: who may do what: access tokens and local role assignments.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::WWW_AUTHENTICATE;
use openssl::pkey::{PKey, Public};
use runtime::clock::Clock;
use runtime::sync::Mutex;
use serde_json::Value;

use super::forbidden;
use crate::emulator::StartError;
use crate::emulator::entra::{Entra, HSM_AUDIENCE};
use crate::emulator::jose::Jws;
use crate::emulator::server::{Answer, Call};

/// A built-in role of the vault, assigned at the scope of all keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Manages the vault and its roles; has no access to keys.
    Administrator,
    /// Releases keys, and cannot even read them.
    CryptoServiceReleaseUser,
    /// Creates, reads and uses keys.
    CryptoUser,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    Create,
    Read,
    Release,
}

/// Checks access tokens and roles.
pub(in crate::emulator) struct Doorman {
    authority: String,
    key: PKey<Public>,
    clock: Arc<dyn Clock>,
    /// By object id.
    roles: Mutex<BTreeMap<String, Vec<Role>>>,
}

impl Role {
    fn allows(self, permission: Permission) -> bool {
        match self {
            Self::Administrator => false,
            Self::CryptoServiceReleaseUser => permission == Permission::Release,
            Self::CryptoUser => true,
        }
    }
}

impl Doorman {
    pub(in crate::emulator) fn new(
        entra: &Entra,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let key = PKey::public_key_from_der(&entra.key().public_key_to_der()?)?;
        let roles = Mutex::new(BTreeMap::new());
        Ok(Self {
            authority: entra.authority(),
            key,
            clock,
            roles,
        })
    }

    pub(super) fn assign(&self, object_id: &str, role: Role) {
        self.roles
            .lock()
            .entry(object_id.to_owned())
            .or_default()
            .push(role);
    }

    pub(super) fn revoke(&self, object_id: &str) {
        self.roles.lock().remove(object_id);
    }

    /// Lets a request pass, or says why not: 401 without a good token, 403 without the role.
    pub(super) fn admit(&self, call: &Call, permission: Permission) -> Result<(), Answer> {
        let header = call.authorization.as_deref();
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        let principal = match token {
            Some(token) => self.principal(token)?,
            None => None,
        };
        let principal = principal.ok_or_else(|| self.challenge())?;
        let roles = self.roles.lock();
        let mut roles = roles.get(&principal).into_iter().flatten();
        if roles.any(|role| role.allows(permission)) {
            Ok(())
        } else {
            Err(forbidden(
                "the caller has no role that allows the operation",
            ))
        }
    }

    /// The object id in an access token; `None` when the token is not good.
    fn principal(&self, token: &str) -> Result<Option<String>, Answer> {
        let Some(token) = Jws::parse(token) else {
            return Ok(None);
        };
        if !token.is_signed_by(&self.key)? {
            return Ok(None);
        }
        let claim = |name| token.payload.get(name).and_then(Value::as_str);
        let now = self.clock.now().0;
        let time = |name| token.payload.get(name).and_then(Value::as_i64);
        let current =
            time("nbf").is_some_and(|nbf| nbf <= now) && time("exp").is_some_and(|exp| now < exp);
        let ours = claim("aud") == Some(HSM_AUDIENCE) && claim("iss") == Some(&self.authority);
        Ok(claim("oid").filter(|_| current && ours).map(str::to_owned))
    }

    fn challenge(&self) -> Answer {
        let challenge = format!(
            r#"Bearer authorization="{}", resource="{HSM_AUDIENCE}""#,
            self.authority
        );
        Answer::error(
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            "no valid access token",
        )
        .with_header(WWW_AUTHENTICATE, challenge)
    }
}
